"""The campaign file's section on how the potential is trained: here, by another program, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from uqbias.options import Count, InputFile, Positive, Runner, Section

OptionalFile = Annotated[str | None, InputFile()]


class TrainingOptions(Section):
    """How a potential is trained; see `uqbias.model.training.train`."""

    steps: Count = Field(
        default=4000,
        description="optimiser steps (in a campaign: of round 0); the learning rate falls to zero over them",
    )
    batch_size: Count = Field(default=8, description="frames a step")
    # With some hundred frames 0.02 generalises better, with a thousand 0.01.
    learning_rate: Positive = Field(default=0.02, description="highest learning rate of Adam")
    force_weight: float = Field(
        default=1.0, ge=0, description="weight of the force error; 0: learn from the energies alone"
    )
    energy_weight: float = Field(default=0.1, ge=0, description="weight of the energy error")
    stress_weight: float = Field(
        default=0.0, ge=0, description="weight of the error of the stress, times the volume; 0: learn from no stress"
    )
    ema: float = Field(default=0.995, ge=0, lt=1, description="decay of the averaged weights, which are the result")
    evaluate_every: Count = Field(default=250, description="steps between two looks at the validation frames")
    patience: Count = Field(default=8, description="looks without improvement after which training stops")
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="time in s after which the schedule ends instead; the result then depends on the machine's speed",
    )
    runner: Runner = Field(
        default="auto",
        description="how the training step is run: aoti (needs a C++ compiler), torchscript, eager, or auto",
    )

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if not (self.force_weight or self.energy_weight):
            raise ValueError(
                "force_weight = 0 with energy_weight = 0: nothing is left to learn from; raise one of them"
            )
        return self


class Training(TrainingOptions):
    """How the potential of a campaign is trained, in round 0 and later."""

    kind: Literal["adam", "none", "command"] = Field(
        default="adam",
        description="adam (here, by the options below), none (the model stays as it is; driver, judge and calibration "
        "learn from each round) or command (fine-tuning by the model's own tool)",
    )
    model: OptionalFile = Field(
        default=None,
        description="kind none or command: the model to begin with, a model file (.uqb) or what `uqbias wrap` opens; "
        "null: the section potential",
    )
    trust: bool = Field(
        default=False, description="import what that model file names (a `module` of your own): it is yours"
    )
    run: str | None = Field(
        default=None,
        description="kind command: command of the shell, in the round's folder training/; {train}, {valid} (extended "
        "XYZ), {model_in}, {model_out}, {seed} and {round} are filled in",
    )
    files: list[Annotated[str, InputFile()]] = Field(
        default=[], description="kind command: files that are copied into that folder, such as the tool's configuration"
    )
    result: str = Field(
        default="trained.model",
        description="kind command: name of {model_out}, which is read as `training.model` is; .uqb is a model file",
    )
    timeout: Positive = Field(default=86400.0, description="kind command: s that it may take")
    warm_start: bool = Field(default=True, description="begin each later round from the weights of the last one")
    later_steps: Count | None = Field(
        default=None, description="optimiser steps of each later round; null: as in round 0"
    )
    later_learning_rate: Positive | None = Field(
        default=0.005,
        description="highest learning rate of each later round; null: as in round 0",
    )
    validation_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=0.5,
        description="share of the labelled frames kept for early stopping; 0: no early stopping",
    )

    def of_round(self, round_index: int, *, warm: bool) -> TrainingOptions:
        """Options of one round; ``warm`` where it begins from the weights of the round before."""
        changes: dict[str, Any] = {}
        if round_index > 0 and self.later_steps is not None:
            changes["steps"] = self.later_steps
        if warm and self.later_learning_rate is not None:
            changes["learning_rate"] = self.later_learning_rate
        return self.model_copy(update=changes)

    @model_validator(mode="after")
    def _kinds(self) -> Self:
        defaults = type(self).model_fields
        changed = [name for name, field in defaults.items() if getattr(self, name) != field.default]
        ours = {*TrainingOptions.model_fields, "later_steps", "later_learning_rate"} - {"runner"}
        tools = {"run", "files", "result", "timeout"}
        unused = {"adam": {"model", "trust", *tools}, "none": {"warm_start", *ours, *tools}, "command": ours}[self.kind]
        if taken := [name for name in changed if name in unused]:
            raise ValueError(f"{taken[0]} has no effect with kind = {self.kind}; remove it, or choose another kind")
        if self.kind == "command" and (self.run is None or "{model_out}" not in self.run):
            raise ValueError("kind = command needs a run with {model_out} in it: the file that it is to write")
        if self.run is not None and "{model_in}" in self.run and self.model is None:
            raise ValueError("run has {model_in}, and there is no model to begin with; give training.model")
        if self.result != Path(self.result).name or self.result in ("", ".", ".."):
            raise ValueError(f"result = {self.result} is no name of a file")
        return self
