"""A campaign's exploration under a PLUMED input of the user's own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqbias.campaign.samplers.base import Advance, Exploration
from uqbias.campaign.samplers.md import MolecularDynamics, begin, describe_run, run_to_end
from uqbias.errors import UqbiasError
from uqbias.files import sha256
from uqbias.variables.base import build_variables

if TYPE_CHECKING:
    from uqbias.molecule.frames import Frames
    from uqbias.molecule.topology import Topology
    from uqbias.settings.schema import Campaign


class PlumedDynamics(MolecularDynamics):
    """MD under the PLUMED input md.plumed."""

    def check(self, campaign: Campaign, topology: Topology, start: Frames) -> None:
        if campaign.md.plumed is None:
            raise UqbiasError("sampler = plumed without an input", "give md: {engine: plumed, plumed: FILE}")

    def explore(self, job: Exploration, advance: Advance | None = None) -> dict[str, Any]:
        """Run the walkers of a group under ``md.plumed`` and write the group's folder.

        Each walker has a PLUMED of its own, whose files are in ``walker_N`` of the folder; they share hills where the
        input says so (``WALKERS_DIR`` of METAD). Guards and files are those of `MolecularDynamics.explore`.

        Raises
        ------
        UqbiasError
            If no PLUMED kernel is found, PLUMED refuses the input, or a walker breaks again and again.
        """
        import torch

        from uqbias.model.model import UncertaintyModel
        from uqbias.plumed.plumed_walkers import PlumedWalkers
        from uqbias.runs.writer import RunWriter

        if job.safe_boxes is not None:
            raise UqbiasError("engine plumed with frames in cells", "take engine: openmm and the biases of `bias:`")
        torch.set_num_threads(1)
        plumed = Path(str(job.md.plumed))
        model = UncertaintyModel.load(job.model)
        variables = build_variables(job.variables, model.topology, job.reference)
        facts = {**describe_run(job, model, (), variables), "plumed": sha256(plumed)}
        positions, settings, _ = begin(job, model)
        with ExitStack() as stack:
            walkers = PlumedWalkers(
                model, plumed, positions, stack, output_dir=job.folder, runner=job.md.runner, **settings
            )
            writer = stack.enter_context(RunWriter(job.folder, facts))
            writer.start(walkers, job.md.observe_every, job.md.trajectory_every)
            run_to_end(job, walkers, writer, advance)
            return {"steps": walkers.steps_of_all, **writer.totals, "fault": walkers.health.fault}
