"""Built-in kinds of every sort of part, name to ``module:attribute``; a new built-in kind is one line here.

The file imports nothing, so that help texts and rooms can list the kinds; `uqbias.registry` makes parts of them.
"""

POTENTIALS = {
    "power_spectrum": "uqbias.potentials.power_spectrum:PowerSpectrum",
    "coordinates": "uqbias.potentials.coordinates:Coordinates",
    "module": "uqbias.potentials.module:FactoryModule",
    "mace": "uqbias.potentials.mace:Mace",
    "ani": "uqbias.potentials.ani:Ani",
    "sevennet": "uqbias.potentials.sevennet:SevenNet",
}
FEATURES = {
    "latents": "uqbias.uncertainty.features.latents:Latents",
    "torsions": "uqbias.uncertainty.features.torsions:Torsions",
    "local_angles": "uqbias.uncertainty.features.local_angles:LocalAngles",
    "pair_distances": "uqbias.uncertainty.features.pair_distances:PairDistances",
    "concatenated": "uqbias.uncertainty.features.concatenated:Concatenated",
}
UNCERTAINTIES = {
    "auto": "uqbias.uncertainty.auto:Automatic",
    "gmm": "uqbias.uncertainty.gmm:GaussianMixture",
    "kernel_density": "uqbias.uncertainty.kernel_density:KernelDensity",
    "local_densities": "uqbias.uncertainty.local_densities:LocalDensities",
    "committee": "uqbias.uncertainty.committee:Committee",
    "shallow_ensemble": "uqbias.uncertainty.shallow_ensemble:ShallowEnsemble",
    "mve": "uqbias.uncertainty.mve:MeanVarianceEstimation",
    "evidential": "uqbias.uncertainty.evidential:Evidential",
    "llpr": "uqbias.uncertainty.llpr:LastLayerRigidity",
    "llpr_forces": "uqbias.uncertainty.llpr_forces:ForceRigidity",
    "distance": "uqbias.uncertainty.latent_distance:LatentDistance",
}
BIASES = {
    "metadynamics": "uqbias.bias.metad:MetaD",
    "parallel_metadynamics": "uqbias.bias.parallel:ParallelMetaD",
    "opes": "uqbias.bias.opes:OPES",
    "eabf": "uqbias.bias.eabf:ExtendedABF",
    "wtm_eabf": "uqbias.bias.eabf:WellTemperedExtendedABF",
    "gamd": "uqbias.bias.gamd:GaMD",
    "linear": "uqbias.bias.linear:Linear",
    "udd": "uqbias.bias.fixed:UDD",
    "upper_wall": "uqbias.bias.fixed:UpperWall",
    "lower_wall": "uqbias.bias.fixed:LowerWall",
    "restraint": "uqbias.bias.fixed:Restraint",
}
VARIABLES = {
    "distance": "uqbias.variables.distance:Distance",
    "angle": "uqbias.variables.angle:Angle",
    "dihedral": "uqbias.variables.dihedral:Dihedral",
    "rmsd": "uqbias.variables.rmsd:RMSD",
    "coordination": "uqbias.variables.coordination:Coordination",
    "position": "uqbias.variables.position:Position",
}
ORACLES = {
    "openmm": "uqbias.oracles.openmm:OpenMMOracle",
    "ase": "uqbias.oracles.ase:ASEOracle",
    "double_well": "uqbias.oracles.analytic:DoubleWellOracle",
    "pool": "uqbias.oracles.pool:PoolOracle",
    "command": "uqbias.oracles.command:CommandOracle",
    "handoff": "uqbias.oracles.handoff:HandoffOracle",
}
SPACES = {
    "cartesian": "uqbias.attacks.cartesian:Cartesian",
    "internal": "uqbias.attacks.internal:Internal",
    "variables": "uqbias.attacks.variables:Variables",
}
SAMPLERS = {
    "metadynamics": "uqbias.campaign.samplers.md:BiasedDynamics",
    "md": "uqbias.campaign.samplers.md:MolecularDynamics",
    "plumed": "uqbias.campaign.samplers.plumed_md:PlumedDynamics",
    "attack": "uqbias.campaign.samplers.distorting:Attack",
    "random": "uqbias.campaign.samplers.distorting:Random",
    "pool": "uqbias.campaign.samplers.distorting:PoolOfFrames",
}
EXECUTORS = {
    "local": "uqbias.campaign.executors.local:Local",
    "process": "uqbias.campaign.executors.local:Processes",
    "slurm": "uqbias.campaign.executors.pilots:Slurm",
    "parsl": "uqbias.campaign.executors.pilots:Parsl",
    "dask": "uqbias.campaign.executors.dask:Dask",
}
