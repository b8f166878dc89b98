"""``site.toml``: the hospital's policy, its machine and its network, as its people wrote them.

The policy is what the hospital allows, whatever a protocol asks: the most privacy budget, networks,
what may leave, and the hours in which orders are carried out (``Policy.open_at``).
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from common.errors import StateError
from common.process.proxies import parse_proxy
from common.study.aggregation_options import SiteName
from common.study.protocol import NetworkName

TEMPLATE: Final = """\
# Settings of this hospital's gliofed site. gliofed reads this file and never changes it.

name = {name}

# Folder with the patients' scans: DICOM studies, BraTS, Decathlon or BIDS, or a CSV manifest.
data = {data}

[labels]
# What the values of the tumour masks mean, for a folder of the data or, as ".", for all of it:
# "brats-2018" (4 is enhancing), "brats-2023" (3 is enhancing), "brats-2024" (after surgery: 4 is
# the cavity, which counts as background), "brats-ped-2024" (children), or in words, such as
# "NCR=1 ED=2 ET=4 background=5". A mask whose values can be read in two ways is refused until this
# says it: another value than 1, 2 and 3, or 1 alone.
# "." = "brats-2018"

[policy]
# The most that all studies together may ever cost one patient (epsilon at the study's delta).
# A patient who has spent it is left out; the others go on.
max_epsilon = 10.0
# The largest delta at which a study may reckon that: "auto" is 0.001, or n to the power -1.1 where
# n patients to train on make that less. At a larger delta the same epsilon allows more steps.
max_delta = "auto"
# Training without differential privacy: only if this says so and the study's protocol does too.
allow_without_privacy = false
networks = ["segresnet", "segresnet_mingru", "dynunet", "unet"]
# What may leave beside weight updates: "case_count" (in buckets), "privacy_spent", "withdrawals"
# (the rounds that saw patients who have withdrawn since), "statistics" (histograms of volumes,
# spacing or intensities, if a study asks for them; with noise, charged to the ledger).
reports = ["case_count", "privacy_spent", "withdrawals"]
# Mean Dice of the validation patients: "never", "noised" (differentially private, charged to the
# ledger, of use with hundreds of patients only) or "exact" (not covered by epsilon: of one patient
# it is that patient's score).
dice = "never"
# When a round with privacy is answered. Its time must not tell how many patients were drawn: "auto"
# answers always after the same time, found in the first round, 1.3 to 2.5 times what one takes; a
# number after a multiple of so many seconds; 0 at once, and then the time tells.
answer_every_s = "auto"
# Train also on cases that clinicians accepted or corrected in `gliofed-clinic review --site`; their
# scans and masks are copied to the folder reviewed.
train_on_reviews = false
# When orders may be carried out, in local time, such as "20:00-06:00".
hours = "00:00-24:00"

[machine]
# "auto" takes CUDA, then Apple's GPU, then the CPU.
device = "auto"
# CUDA devices that share the crops of each patient; 0 takes all that are there.
gpus = 1
# "float32", "bfloat16", or "auto": bfloat16 on a GPU that has it, else float32. A CPU trains in
# float32 whatever this says; it predicts in bfloat16 if this says so and it multiplies that itself.
# `gliofed-site rehearse` measures.
precision = "auto"
# CPU threads, to train and to predict: a number for this site, since another one rounds otherwise.
# 0 is 4, whatever the machine has. A machine of many cores without a GPU is faster with more.
threads = 0
# The most that prepared cases may take in the folder cache, in GB; 0 sets no limit. At its limit,
# or on a full disk, those unused for longest are removed and prepared again when they are needed.
# Leave room for all cases of the studies that run: about 0.07 GB each at 1 mm.
cache_gb = 0

[network]
# The proxy on the way to the coordinator, such as "http://proxy.hospital.example:3128"; "" obeys
# HTTPS_PROXY and NO_PROXY of the environment. It must pass TLS unopened (CONNECT). Start
# `gliofed-site run` anew after a change; `gliofed-site doctor` tests it.
proxy = ""
# Who we are to the proxy (Basic): the password is the first line of a file of mode 0600, as
# "keys/proxy.password".
proxy_user = ""
proxy_password_file = ""
# Who signed the certificate of a proxy that is itself spoken to by TLS (https://), a PEM file; ""
# trusts those whom the system trusts.
proxy_ca = ""
"""


_MOST_DELTA: Final = 1e-3


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Policy(_Frozen):
    """What the hospital allows, whatever a protocol asks."""

    max_epsilon: float = Field(default=10.0, gt=0)
    max_delta: Literal["auto"] | Annotated[float, Field(gt=0, lt=0.1)] = "auto"
    allow_without_privacy: bool = False
    networks: tuple[str, ...] = get_args(NetworkName)
    reports: tuple[Literal["case_count", "privacy_spent", "withdrawals", "statistics"], ...] = (
        "case_count",
        "privacy_spent",
        "withdrawals",
    )
    dice: Literal["exact", "noised", "never"] = "never"
    answer_every_s: Literal["auto"] | Annotated[float, Field(ge=0, le=3600)] = "auto"
    train_on_reviews: bool = False
    hours: str = Field(default="00:00-24:00", pattern=r"^\d\d:\d\d-\d\d:\d\d$")

    @field_validator("hours")
    @classmethod
    def _times(cls, value: str) -> str:
        for part in value.split("-"):
            hour, minute = map(int, part.split(":"))
            if hour * 60 + minute > 24 * 60 or minute > 59:
                raise ValueError(f"{part} is not a time of day")
        return value

    def delta_cap(self, patients: int) -> float:
        """Return the largest delta of a study in which so many patients here take part."""
        if isinstance(self.max_delta, float):
            return self.max_delta
        return min(_MOST_DELTA, float(max(1, patients) ** -1.1))

    def open_at(self, now: dt.time) -> bool:
        """Return whether orders may be carried out at ``now``; the window may pass midnight."""
        begin, end = (int(p[:2]) * 60 + int(p[3:]) for p in self.hours.split("-"))
        minute = now.hour * 60 + now.minute
        return begin <= minute < end if begin <= end else minute >= begin or minute < end


class Machine(_Frozen):
    """What the site's computer offers. Nothing here can change what a study costs."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    gpus: int = Field(default=1, ge=0, le=64)
    """CUDA devices that share the crops of each patient, at most one for each crop; 0 takes all."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = Field(default=0, ge=0, le=1024)
    cache_gb: float = Field(default=0.0, ge=0, le=1e6)
    """The most that prepared cases may take on the disk; 0 sets no limit."""

    @property
    def cache_bytes(self) -> int:
        return round(self.cache_gb * 1e9)


class Network(_Frozen):
    """How this hospital's network is left; paths are relative to the site's folder."""

    proxy: str = ""
    proxy_user: str = Field(default="", pattern=r"^[^:\x00-\x1f]*$")
    proxy_password_file: str = ""
    proxy_ca: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Network:
        if not self.proxy:
            if self.proxy_user or self.proxy_password_file or self.proxy_ca:
                raise ValueError("proxy_user, proxy_password_file and proxy_ca are of a proxy")
            return self
        try:
            parsed = parse_proxy(self.proxy, source="proxy")
        except StateError as error:
            raise ValueError(str(error)) from None
        if parsed.user or parsed.password:
            raise ValueError("write the user as proxy_user and the password into a file")
        if str(parsed) != self.proxy.lower().rstrip("/"):
            raise ValueError(f"write scheme, host and port: {parsed}")
        if bool(self.proxy_user) != bool(self.proxy_password_file):
            raise ValueError("proxy_user and proxy_password_file go together")
        if self.proxy_ca and parsed.scheme != "https":
            raise ValueError(
                "proxy_ca is for a proxy that is spoken to by TLS (https://); the coordinator's "
                "certificate is trusted by the kit alone"
            )
        return self


class SiteSettings(_Frozen):
    """``site.toml``."""

    name: SiteName
    data: str = Field(min_length=1)
    labels: dict[str, str] = {}
    """The coding of the masks of each folder (``client.cohort.declared_labels``)."""
    policy: Policy = Policy()
    machine: Machine = Machine()
    network: Network = Network()
