"""What the facts about a machine and its installation mean: disk, memory, keys, libraries.

Pure: ``common.doctor.machine_facts`` gathers the facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from common.doctor.findings import Finding, ok, problem, warning
from common.doctor.machine_facts import Place, Secret, Unit
from common.process import proxies
from common.process.child_processes import FLOWER_ENVIRONMENT
from common.versions import unproven

MB: Final = 10**6
GB: Final = 10**9

_LITTLE_DISK: Final = 5 * GB
_NO_DISK: Final = 500 * MB
_CHILDREN_ENVIRONMENT: Final = {k: v for k, v in FLOWER_ENVIRONMENT.items() if k.startswith("FLWR")}


def of_place(place: Place, *, needed: int = 0) -> Finding:
    """Judge a folder that is written to; ``needed`` is how many bytes are known to come."""
    where = f"{place.what} ({place.path})"
    if place.full:
        return problem(
            "disk",
            f"The disk of {where} is full: nothing can be written.",
            "Free space on it; until then no round is taken part in.",
        )
    if place.trouble:
        return problem(
            "disk",
            f"It cannot be written to {where}: {place.trouble}.",
            "Let the user that runs gliofed own the folder (`chown -R`), on a disk that is not "
            "mounted read only.",
        )
    free = f"{size(place.free)} free for {where}"
    if place.free < max(_NO_DISK, needed):
        return problem("disk", f"Only {free}.", f"Free {size(max(_LITTLE_DISK, needed))} on it.")
    if place.free < needed + _LITTLE_DISK:
        return warning("disk", f"Only {free}.", f"Free {size(needed + _LITTLE_DISK)} on it.")
    return ok("disk", f"{free}.")


def of_temporary(folder: Path | None) -> Finding:
    """Judge the folder for temporary files; None where none can be written."""
    if folder is None:
        return problem(
            "temporary",
            "No folder for temporary files can be written, neither TMPDIR's nor /tmp nor /var/tmp.",
            "Set TMPDIR to a folder of this user; in a container, mount an empty volume at /tmp.",
        )
    return ok("temporary", f"Temporary files go to {folder}.")


def size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / MB:.0f} MB"


def of_memory(free: int, *, little: int, too_little: int) -> Finding:
    told = f"{size(free)} of memory are free"
    if free < too_little:
        return problem(
            "memory", f"Only {told}.", f"It takes {size(too_little)} at least; stop other work."
        )
    if free < little:
        return warning("memory", f"Only {told}.", f"{size(little)} are better; see deploy/.")
    return ok("memory", f"{told}.")


def of_secrets(secrets: Iterable[Secret]) -> list[Finding]:
    """Judge who may read each secret file."""
    said, well = [], 0
    for one in secrets:
        if one.missing:
            said.append(
                problem(
                    "keys",
                    f"{one.path} is missing.",
                    "Restore the folder from a backup: without it nothing here is believed.",
                )
            )
        elif one.mode & 0o077:
            said.append(
                problem(
                    "keys",
                    f"{one.path} can be read by others (mode {one.mode:o}).",
                    f"`chmod 600 {one.path}`. If strangers have accounts here, make new keys.",
                )
            )
        elif not one.readable:
            said.append(
                problem(
                    "keys",
                    f"{one.path} cannot be read by this user.",
                    "Run the command as the user that runs gliofed, or `chown` the folder to it.",
                )
            )
        else:
            well += 1
    return said or [ok("keys", f"{well} secret files are for their owner alone.")]


def of_owners(strangers: Sequence[str], *, owner: str) -> Finding:
    """Judge files in the folder that another user owns, as after a command run as root."""
    if not strangers:
        return ok("owner", f"Every file here belongs to {owner}.")
    more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
    return problem(
        "owner",
        f"{strangers[0]}{more} do not belong to {owner}, who owns the folder.",
        f"`chown -R {owner}` the folder; run commands as that user, not as root.",
    )


def of_leftovers(count: int) -> Finding:
    """Judge what killed processes left half-written."""
    if not count:
        return ok("leftovers", "No half-written file lies here.")
    return warning(
        "leftovers",
        f"{count} half-written files of killed processes lie here (.partial-*).",
        "They take space and do no harm; remove them while nothing runs here.",
    )


def of_environment(environment: Mapping[str, str]) -> list[Finding]:
    """Judge the variables that change what Flower does."""
    said = [
        warning(
            "environment",
            f"{name} is {environment[name]} here. What gliofed starts gets {value} all the same; a "
            "Flower command that you type does not.",
            f"`export {name}={value}`",
        )
        for name, value in sorted(_CHILDREN_ENVIRONMENT.items())
        if environment.get(name, value) != value
    ]
    return said or [ok("environment", "No telemetry and no update check are asked for.")]


def of_no_proxy(
    environment: Mapping[str, str], *, host: str, port: int, reached: bool
) -> list[Finding]:
    """Judge a way without a proxy, where the environment speaks of one."""
    names = sorted(name for name in proxies.variables(environment) if name.lower() != "no_proxy")
    names = [name for name in names if environment.get(name, "").strip()]
    if not names:
        return []
    named = " and ".join(names)
    if proxies.is_loopback(host):
        return [ok("proxy", f"{named} is not for {host}: this machine is reached without a proxy.")]
    if proxies.exempts(proxies.exemptions(environment), host, port):
        return [ok("proxy", f"{named} is not for {host}, which NO_PROXY exempts.")]
    told = f"{named} is not for {host}: the way there is TLS, for which HTTPS_PROXY is not set."
    if reached:
        return [ok("proxy", told)]
    do = "If the proxy is meant, name it in [network] of site.toml, or as HTTPS_PROXY."
    return [warning("proxy", told, do)]


def of_taken_way(taken: str, here: str) -> list[Finding]:
    """Judge the proxy of the SuperNode that runs by the one that this command took; "" is none."""
    if taken == here:
        return []
    ways = [f"through the proxy {one}" if one else "without a proxy" for one in (taken, here)]
    return [
        warning(
            "proxy",
            f"The SuperNode that runs goes {ways[0]}; this command went {ways[1]}.",
            "Its environment is another, or the settings were changed since: set proxy in "
            "[network] of site.toml, and start `gliofed-site run` anew.",
        )
    ]


def of_libraries(names: Iterable[str], wanted: Mapping[str, str]) -> Finding:
    """Judge the libraries that are installed against those that the release is proven with."""
    names = [name for name in names if name in wanted]
    found = unproven(wanted, names)
    if not found:
        listed = ", ".join(f"{name} {wanted[name]}" for name in names)
        return ok("versions", f"As proven: {listed or 'nothing is pinned'}.")
    parts = [f"{n} {here or 'is missing'} (proven: {pin})" for n, (here, pin) in found.items()]
    return warning(
        "versions",
        f"Not what this release is proven with: {', '.join(parts)}.",
        "Install with `-c constraints.txt`, as deploy/ says.",
    )


def of_unit(unit: Unit | None) -> Finding:
    """Judge the systemd unit; None where there is none of that name."""
    if unit is None:
        return ok("unit", "No systemd unit of that name: something else must start it.")
    if unit.active != "active":
        return problem(
            "unit",
            f"{unit.name} is {unit.active}.",
            f"`systemctl start {unit.name}`; `journalctl -u {unit.name}` says why it ended.",
        )
    if unit.enabled != "enabled":
        return warning(
            "unit",
            f"{unit.name} is active, but {unit.enabled}: it does not come back after a restart.",
            f"`systemctl enable {unit.name}`",
        )
    return ok("unit", f"{unit.name} is active and starts with the machine.")
