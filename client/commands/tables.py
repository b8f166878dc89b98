"""How the oversight commands print: tables, and sentences that a person need not interpret.

Out of scope: what the numbers are; each comes from the module that reckons it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common import console
from common.records.journal import Entry
from common.regions import REGIONS

if TYPE_CHECKING:  # these load torch, which takes seconds
    from client.privacy.audit import AuditResult
    from client.segmentation.postprocessing_search import Trial
    from client.study.withdrawal import Effect
    from client.views.journal_audit import Findings


def show_budget(found: dict[str, Any]) -> None:
    from client.views.budget import UNSEEN

    columns = ["study", "epsilon", "of", "delta", "steps", "unconfirmed", "rounds that still fit"]
    columns.append("patients with a round left")
    rows: list[list[object]] = []
    for study in found["studies"]:
        if not study["private"]:
            steps = [study["steps_spent"], study["steps_unconfirmed"]]
            words = "infinite: WITHOUT PRIVACY" if steps[0] else "WITHOUT PRIVACY"
            rows.append([study["study"], words, "-", "-", *steps, "-", "-"])
            continue
        rows.append(
            [
                study["study"],
                float(study["epsilon_spent"]),
                float(study["epsilon_cap"]),
                f"{study['delta']:g}",
                study["steps_spent"],
                study["steps_unconfirmed"],
                study["rounds_left"],
                f"{study['patients_with_a_round_left']} of {study['patients']}",
            ]
        )
    total = found["all_studies"]
    spent, cap = float(total["epsilon_spent"]), float(total["epsilon_cap"])
    rows.append(["all studies", spent, cap, f"{total['delta']:g}", total["steps_spent"]])
    rows[-1] += [total["steps_unconfirmed"], "-", "-"]
    console.show_table(f"Privacy budget of {found['site']}: the worst patient", columns, rows)
    console.say(
        f"Unit: {found['unit']}. Steps that were begun and not confirmed count as spent. The "
        "rounds that still fit are those of the patient with the least left. " + UNSEEN
    )
    for study in found["studies"]:
        if study["private"] and study["scores"]:
            console.say(
                f"{study['study']}: {study['scores']} noised scores cost a validation patient at "
                f"most epsilon {study['epsilon_of_scores']:.2f}."
            )
    if total["worst_patient"]:
        console.say(
            f"The patient who has spent the most is {total['worst_patient']}, in: "
            f"{', '.join(total['studies_of_worst_patient'])}."
        )


def show_plan(found: dict[str, Any]) -> None:
    from client.study.consent import WITHOUT_PRIVACY

    say, privacy = console.say, found["privacy"]
    if privacy is None:
        console.warn(
            f"{found['study']} TRAINS WITHOUT DIFFERENTIAL PRIVACY: NOTHING BOUNDS WHAT THE "
            f"UPDATES TELL OF A PATIENT. {WITHOUT_PRIVACY}"
        )
    else:
        _show_cost(found, privacy)
    rows = [
        [
            one["what"],
            "with every answer" if one["times"] is None else one["times"],
            one["bytes"] or "-",
            one["protection"],
        ]
        for one in found["leaves"]
    ]
    columns = ["what", "times at most", "bytes each", "protection"]
    console.show_table("What can leave, and nothing else", columns, rows)
    network, patients = found["network"], found["patients"]
    say(
        f"It trains {network['trained_parameters']} of the {network['parameters']} parameters of "
        f"{network['name']} ({', '.join(network['trained_groups'])}), {found['rounds']} rounds of "
        f"{found['steps_per_round']} steps, from {found['starts_from']}. Here it has "
        f"{patients['train']} patients to train, {patients['validation']} to validate and "
        f"{patients['test']} to test on."
    )
    if left_out := found["cases_that_lack_sequences_left_out"]:
        console.warn(
            f"{left_out} labelled cases lack a sequence and are left out: the study has no "
            "sequence_dropout. `gliofed-site check DIR` names them."
        )
    if found["policy"]["allowed"]:
        say("The site's policy allows it.")
        if found["digest"]:
            say(
                f"The digest of version {found['version']} is {found['digest']}. To approve what "
                f"you have read: `gliofed-site approve DIR {found['study']} --digest "
                f"{found['digest'][:16]} --by NAME`."
            )
        else:
            say("It is a draft: it has a digest, to approve it by, once it was offered here.")
    else:
        console.warn(f"The site's policy refuses it: {found['policy']['reason']}")
        say(found["policy"]["do"])


def _show_cost(found: dict[str, Any], privacy: dict[str, Any]) -> None:
    from client.views.budget import UNSEEN

    say = console.say
    rows = [
        [one["round"], one["steps"], one["at_delta"], one["at_strict_delta"]]
        for one in privacy["epsilon"]
    ]
    columns = ["after round", "steps", f"epsilon at delta {privacy['delta']:g}", "at delta 1e-05"]
    console.show_table(f"What {found['study']} would cost each patient", columns, rows)
    say(
        f"Unit: {privacy['unit']}. The cap of the study is epsilon {privacy['study_cap']:g}, that "
        f"of a patient over all studies {privacy['patient_cap']:g}."
    )
    for one in privacy["last_rounds"]:
        last, patients = one["last_round"], one["patients"]
        if last == found["rounds"]:
            say(f"{patients} patients have room for all {last} rounds.")
        elif last <= privacy["rounds_done"]:
            console.warn(f"{patients} patients have no room for a round more.")
        else:
            console.warn(f"{patients} patients have room up to round {last} only.")
    delta, cap = privacy["delta"], privacy["delta_cap"]
    if privacy["delta_fits"]:
        say(f"Delta {delta:g} is within this site's cap for the patients here, {cap:.2g}.")
    else:
        console.warn(
            f"Delta {delta:g} is above this site's cap for the patients here, {cap:.2g}, or not "
            "below one over their number: the study would refuse to train."
        )
    say(UNSEEN)
    say(
        f"A step draws {privacy['patients_per_step']:.1f} of the patients here and divides by "
        f"{privacy['patients_per_step_divided_by']:g}. Its noise has the norm "
        f"{privacy['noise_norm']:.3g}, {privacy['noise_over_clipping_norm']:.3g} times the "
        "clipping norm, which is about the most that the mean of the patients' gradients has."
    )
    if privacy["statistics"] is not None:
        say(
            "The histograms of the cohort would cost each training patient epsilon "
            f"{privacy['statistics']:.2f}, which is counted in the table."
        )
    if privacy["dice"] is not None:
        say(
            f"The {privacy['dice']['times']} noised scores would cost each validation patient "
            f"epsilon {privacy['dice']['epsilon']:.2f}."
        )


def show_withdrawal(done: Effect, *, limits: Sequence[str]) -> None:
    if done.again:
        console.say(f"The patient {done.patient} withdrew already: {done.since}, by {done.by}.")
    else:
        console.say(f"The patient is withdrawn since {done.since}; pseudonym {done.patient}.")
    rows = [
        [
            one.study,
            _listed(one.training),
            _listed(one.metrics),
            "yes" if one.statistics else "-",
            _listed(one.maybe_training),
            _listed(one.maybe_metrics),
        ]
        for one in done.lineage
    ]
    columns = ["study", "rounds trained", "rounds scored with noise", "counted with noise"]
    columns += ["trained WITHOUT PRIVACY", "exact Dice that left"]
    if rows:
        console.show_table("Rounds that saw the patient; the last two: may have", columns, rows)
    else:
        console.say("No round of a study saw the patient.")
    models = [
        [one.model, "yes" if one.active else "no", "yes" if one.certain else "perhaps"]
        for one in done.models
    ]
    if models:
        columns = ["model", "active here", "descends from such a round"]
        console.show_table("Models installed here", columns, models)
    console.say(f"{done.prepared_removed} prepared images were removed from the cache.")
    if done.reviewed_removed:
        console.say(f"{done.reviewed_removed} reviewed cases were removed from the site's folder.")
    if done.running:
        console.warn("The site is running: a round that it trains now may end with the patient.")
    for limit in limits:
        console.say(f"- {limit}")


def show_findings(found: Findings) -> None:
    if found.damage:
        return
    console.say(f"The journal is whole: {len(found.entries)} facts, head {found.head[:16]}.")
    console.say(
        f"The ledger is whole: {found.ledger_facts} facts, {found.unconfirmed_facts} of them not "
        f"confirmed. {found.withdrawn} patients have withdrawn."
    )
    if found.told_head:
        console.say(
            f"The last line that the coordinator was sent is {found.told_head[:16]}"
            + (f"; the last that it named is {found.heard_head[:16]}." if found.heard_head else ".")
        )


def show_outbox(name: str, found: Sequence[dict[str, Any]]) -> None:
    rows = [
        [
            one["time"][:19],
            one["to"] or "-",
            one["study"],
            "-" if one["round"] is None else one["round"],
            one["what"] + (f": {one['told']}" if one["told"] else ""),
            "-" if one["bytes"] is None else one["bytes"],
            ", ".join(value[:12] for value in one["digests"].values()) or "-",
        ]
        for one in found
    ]
    columns = ["time (UTC)", "to", "study", "round", "what left", "bytes", "digests"]
    console.show_table(f"What left {name}", columns, rows)
    total = sum(one["bytes"] or 0 for one in found)
    console.say(f"{len(found)} messages, {total} bytes.")


def show_journal(entries: Sequence[Entry], *, title: str) -> None:
    sent = [one for one in entries if one.event in {"sent", "declined"}]
    rows = [
        [one.time[:19], one.event, console.brief(one.facts)] for one in entries if one not in sent
    ]
    console.show_table(title, ["time", "event", ""], rows)
    left = [
        [
            one.time[:19],
            *(one.facts.get(key, "-") for key in ("study", "round", "what", "bytes")),
            {True: "yes", False: "NO", None: "-"}[one.facts.get("private")],
        ]
        for one in sent
    ]
    columns = ["time", "study", "round", "what left", "bytes", "differentially private"]
    console.show_table("What left this hospital", columns, left)


def show_installed(found: dict[str, Any]) -> None:
    from client.clinic.installed_models import FEWEST_PATIENTS, counted

    say, warn = console.say, console.warn
    name, patients = found["name"], found["patients"]
    if patients:
        row = [patients, found["cases"], *(console.figure(found["dice"].get(r)) for r in REGIONS)]
        columns = ["patients", "cases", *REGIONS]
        console.show_table("Dice on this site's own test patients", columns, [row])
    if not found["active"]:
        warn(f"{name} is installed but not active: {found['not_active_because']}.")
        say("`gliofed-site install --activate` makes it the active one all the same.")
    else:
        say(f"{name} is verified, installed and active.")
        if patients < FEWEST_PATIENTS:
            warn(
                f"It was scored on {counted(patients)} of this site: how well it does here is not "
                "known. Compare its first segmentations with what you see in the images."
            )
    calibration = found["calibration"]
    if calibration is None:
        say(
            f"Its probabilities are not calibrated: that takes {FEWEST_PATIENTS} validation "
            f"patients, and this site has {found['validation_patients']}. Its masks are the same."
        )
        return
    said = ", ".join(f"{r} {t:.2f}" for r, t in calibration["temperatures"].items())
    say(
        f"Its probabilities were calibrated on {calibration['patients']} validation patients; "
        f"temperatures {said}. They stay here."
    )


def show_scores(name: str, found: Sequence[dict[str, Any]]) -> None:
    rows = [
        [f["weights"], f["cases"], *(console.figure(f["dice"].get(r)) for r in REGIONS)]
        for f in found
    ]
    columns = ["weights", "cases", *REGIONS]
    console.show_table(f"Dice on the test patients of {name}", columns, rows)
    for one in found:
        if one.get("scores"):
            _show_full_scores(one)


def _show_full_scores(one: dict[str, Any]) -> None:
    rows = [
        [
            region,
            console.figure(means["dice"]),
            console.figure(means["lesion_dice"]),
            means["hd95_mm"],
            means["lesion_hd95_mm"],
            console.figure(means["surface_dice"]),
            means["absolute_volume_error_ml"],
            console.figure(one["calibration_error"][region]),
        ]
        for region, means in one["scores"].items()
    ]
    columns = ["region", "Dice", "by lesion", "HD95 mm", "by lesion", "surface Dice"]
    columns += ["volume error mL", "calibration error"]
    console.show_table(f"{one['weights']}: means over {one['cases']} cases", columns, rows)


def show_tried(trials: Sequence[Trial], *, criterion: str) -> None:
    rows = [
        [one.option, one.value, console.figure(one.score), "chosen" if one.chosen else ""]
        for one in trials
    ]
    columns = ["option", "value", criterion, ""]
    console.show_table("Post-processing, tried on the validation patients", columns, rows)


def show_trials(result: AuditResult) -> None:
    rows = [
        [
            one.name,
            one.lower_bound,
            one.upper_bound,
            f"{one.delta:.1e}",
            one.canaries,
            f"{one.correct} of {one.guesses}",
            str(one.noise),
            str(one.share),
            "yes" if one.passed else "NO",
        ]
        for one in result.trials
    ]
    columns = ["trial", "epsilon is at least", "the ledger says at most", "delta"]
    columns += ["invented patients", "right guesses"]
    columns += ["noise multiplier", "a patient's share of a step", "passed"]
    console.show_table("Empirical audit of the installed training", columns, rows)


def show_passed(result: AuditResult) -> None:
    console.say(
        f"Nothing speaks against the ledger, with {result.confidence:.0%} confidence: the attack "
        "found less than the ledger allows. That is no proof of privacy; it is what a fault in the "
        "clipping, the noise or the sampling would most likely have broken. No patient was used, "
        f"and no budget. It took {result.seconds:.0f} s."
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "-"
