"""What others make of our DICOM objects: a validator and a reader that share no code with ours."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.programs import needed, packaged


def errors(path: Path) -> list[str]:
    """Return what dciodvfy, an independent validator, calls an error."""
    ran = subprocess.run([needed("dciodvfy"), "-new", str(path)], capture_output=True, text=True)
    return [line for line in ran.stderr.splitlines() if line.startswith("Error")]


def by_dcmqi(path: Path, folder: Path) -> nib.Nifti1Image:
    """Return the mask that dcmqi, an independent reader, makes of a segmentation."""
    program = packaged("dcmqi", "segimage2itkimage")
    folder.mkdir()
    command = [program, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nii"]
    subprocess.run([*command, "--mergeSegments", "--prefix", "x"], check=True, capture_output=True)
    (found,) = folder.glob("*.nii.gz")
    return nib.load(found)


def same_voxels(found: nib.Nifti1Image, labels: np.ndarray, affine: np.ndarray) -> bool:
    """Say whether both mark the same places of the patient with the same labels."""
    data = np.asarray(found.dataobj)
    to_ours = np.linalg.inv(affine) @ found.affine
    theirs = np.argwhere(data)
    index = theirs @ to_ours[:3, :3].T + to_ours[:3, 3]
    np.testing.assert_allclose(index, index.round(), atol=0.02)
    places = map(tuple, index.round().astype(int).tolist())
    values = data[tuple(theirs.T)].tolist()
    ours = zip(map(tuple, np.argwhere(labels).tolist()), labels[labels > 0].tolist(), strict=True)
    return dict(zip(places, values, strict=True)) == dict(ours)
