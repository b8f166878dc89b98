"""What the privacy ledger says, in words that a hospital can act on."""

from __future__ import annotations

from typing import Any

from client.site import Site
from client.studies import caps, open_ledger
from common.privacy import Mechanism


def budget(site: Site) -> dict[str, Any]:
    """Return, per study and for the worst patient over all studies, what is spent and left.

    Every patient of the site is taken to be in every study: the true worst patient has spent no
    more than this says.
    """
    studies = []
    deltas = []
    with open_ledger(site) as ledger:
        for name in site.study_names():
            protocol = site.protocol(name)
            if not protocol.private:
                studies.append({"study": name, "private": False})
                continue
            options = protocol.privacy
            mechanism = Mechanism(options.noise_multiplier, options.sampling_rate)
            study_cap, site_cap = caps(site, protocol)
            left = ledger.steps_left(
                study=name, mechanism=mechanism, study_cap=study_cap, site_cap=site_cap
            )
            spent = ledger.spent(options.delta, study=name)
            deltas.append(options.delta)
            studies.append(
                {
                    "study": name,
                    "private": True,
                    "epsilon_spent": round(spent.epsilon, 4),
                    "epsilon_cap": options.max_epsilon,
                    "delta": options.delta,
                    "steps_spent": spent.steps,
                    "steps_unconfirmed": spent.unconfirmed,
                    "steps_left": left,
                    "rounds_left": left // protocol.training.local_steps,
                }
            )
        delta = min(deltas, default=1e-5)
        total = ledger.spent(delta)
    return {
        "site": site.name,
        "unit": "patient; add or remove one",
        "studies": studies,
        "all_studies": {
            "epsilon_spent": round(total.epsilon, 4),
            "epsilon_cap": site.settings.policy.max_epsilon,
            "delta": delta,
            "steps_spent": total.steps,
        },
    }
