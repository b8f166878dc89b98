"""Does this machine's GPU compute what a CPU computes, and what does it cost?

``make gpu-check`` needs no network once the environment is there, and is meant to take less than
ten minutes on a GPU of a data centre. Without CUDA it says so, and runs the same code on the CPU
with small crops.

A machine that has PyTorch (2.11 or later) and no network: ``make gpu-wheels`` elsewhere fetches
gliofed's own wheel and what ``needs.txt`` names, about 30 MB. There, in a checkout::

    python -m pip install --no-index --no-deps --target SITE .gpu-wheels/*.whl
    PYTHONPATH=.:SITE python -m tests.gpu
"""
