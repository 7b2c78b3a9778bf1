"""Molecules: topology and atom selections, frames, geometric measures and limits, sameness of geometries."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "atoms": ("fixed_atoms", "ordered_atoms", "select_atoms"),
        "frames": ("Frames", "read_frames", "read_systems", "write_frames"),
        "collection": ("read_collection",),
        "measures": (
            "StiffTorsions",
            "bond_angles",
            "chirality",
            "covalent_contacts",
            "dihedral_angles",
            "distances",
            "van_der_waals_contacts",
        ),
        "physical": ("Limits", "PhysicalFilter"),
        "labels": ("LabelKeys",),
        "protons": ("mobile_protons",),
        "readers": ("read_images",),
        "sense": ("check_geometries", "check_labels", "check_molecule", "check_sense"),
        "sameness": ("NearFeatures", "NearGeometry", "NoSameness", "Sameness", "rmsd"),
        "seen": ("Memory",),
        "surface": ("ReferenceSurface",),
        "topology": ("Topology", "backbone_dihedrals", "read_pdb"),
    },
)
