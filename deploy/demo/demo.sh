#!/usr/bin/env bash
# Hospitals train one tumour model together, on this machine: real processes, TLS, keys, signatures,
# patient-level differential privacy. Every line that begins with $ is a command that you can type.
#
#   demo.sh FOLDER          three phantom hospitals
#   demo.sh FOLDER DATA     one hospital for each subfolder of DATA
#
# DEMO_FULL=1               compare with training alone WITHOUT privacy too: it takes longer
# DEMO_NETWORK=dynunet      that network in place of the protocol's: the word network.name is changed
# DEMO_PATIENTS=12          so many phantom patients a hospital
# DEMO_BEGAN=1767225600     when `make demo` began, so that its installation is counted
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${1:?usage: demo.sh FOLDER [DATA]}
data=${2:-}
[ -z "$data" ] || data=$(cd "$data" && pwd)
# nproc obeys OMP_NUM_THREADS, so the cores are counted without it.
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null ||
    sysctl -n hw.ncpu 2>/dev/null || echo 2)
export OMP_NUM_THREADS=1             # several hospitals share this machine's cores
patients=${DEMO_PATIENTS:-34}
network=${DEMO_NETWORK:-$(sed -n 's/^name = "\([a-z_]*\)".*/\1/p' "$here/protocol.toml")}
initial="$here/initial-$network.safetensors"   # trained on phantoms only: `make initial`
ways=(private)
[ -z "${DEMO_FULL:-}" ] || ways+=(no-private)
began=${DEMO_BEGAN:-$(date +%s)}

# On Linux what the demo starts ends with it, even if this shell is killed; elsewhere the trap sees to it.
tied=()
if setpriv --pdeathsig TERM true 2>/dev/null; then tied=(setpriv --pdeathsig TERM); fi
finish() {
    local pid
    for pid in $(jobs -pr); do kill "$pid" 2>/dev/null || true; done
    wait
}
trap finish EXIT
show() { # print a command as a person types it
    local word line="\$"
    for word in "$@"; do [[ $word == *" "* ]] && line+=" \"$word\"" || line+=" $word"; done
    echo "$line"
}
run() { echo; show "$@"; ${tied[@]+"${tied[@]}"} "$@"; }
begin() { # file, command...: run it beside the rest, its output into the file
    local file=$1; shift
    ${tied[@]+"${tied[@]}"} "$@" >"$file" 2>&1 &
}
await() { # process, file: wait until it has ended, and show what it wrote
    local rc=0
    wait "$1" || rc=$?
    cat "$2"
    [ $rc = 0 ] || exit $rc
}
step="" step_began=$began
heading() { # the next step's title; none: the last step has ended
    local now; now=$(date +%s)
    if [ -n "$step" ]; then
        echo; echo "--- $step took $((now - step_began)) s; $((now - began)) s since the start."
    fi
    step_began=$now; step=${1:+Step ${1%%.*}}
    if [ -n "$1" ]; then echo; echo "=== $1"; fi
}
until_true() { # seconds, command...: wait until the command succeeds
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then echo "waited in vain for: $*" >&2; return 1; fi
        sleep 0.5
    done
}

rm -rf "$work"; mkdir -p "$work"; cd "$work"
sites=()
if [ -n "$data" ]; then
    for folder in "$data"/*/; do
        [ -d "$folder" ] || { echo "$data has no subfolder: make one for each hospital." >&2; exit 1; }
        sites+=("$(basename "$folder")"); ln -s "$folder" "data-$(basename "$folder")"
    done
    echo "${#sites[@]} hospitals, one for each folder in $data. About 5 minutes from here with a few"
    echo "scans each, longer with more. Nothing leaves this machine."
else
    sites=(hospital-a hospital-b hospital-c)
    used=$((cores < 4 ? cores : 4))     # more cores have little to do
    seconds=$((30 + (190 + (10 + 9 * ${#ways[@]}) * patients) / used))
    echo "Three hospitals with $patients phantom patients each: about $(((seconds + 59) / 60)) minutes" \
        "from here with $cores cores. Nothing leaves this machine."
fi
sed "s/^name = \"[a-z_]*\"/name = \"$network\"/" "$here/protocol.toml" >protocol.toml
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
[ -z "${DEMO_BEGAN:-}" ] || step="The installation"

heading "1. The coordinator founds a consortium"
run gliofed-server init coordinator --name "Demo consortium" --host 127.0.0.1 --port "$port"

heading "2. Hospitals and their data; they join, with keys that are made at the hospital and stay there"
making=()
if [ -z "$data" ]; then
    profiles=(3t-research 1.5t-community 3t-lowgrade)
    for i in 0 1 2; do
        make=(gliofed-site phantoms "data-${sites[$i]}" --profile "${profiles[$i]}")
        make+=(--patients "$patients" --seed "$((i + 1))")
        show "${make[@]}" "&"
        begin "${sites[$i]}-phantoms.txt" "${make[@]}"; making+=($!)
    done
fi
for site in "${sites[@]}"; do
    run gliofed-site request "$site" --name "$site" --data "data-$site"
    # Several hospitals share this machine's cores.
    # Phantoms have no draws to hide, so that answers need not wait, and their scores may leave; at
    # a new site scores never do.
    sed -e "s/^threads = 0/threads = 1/" -e "s/^answer_every_s = .*/answer_every_s = 0/" \
        -e 's/^dice = "never"/dice = "exact"/' "$site/site.toml" >"$site.toml" &&
        mv "$site.toml" "$site/site.toml"
    run gliofed-server admit coordinator "$site/request.json" --out "$site-kit.json"
    run gliofed-site join "$site" "$site-kit.json"
done
for i in ${making[@]+"${!making[@]}"}; do await "${making[$i]}" "${sites[$i]}-phantoms.txt"; done
python "$here/summary.py" parts "${sites[@]}"
trainers=($(cat trainers.txt)) scorers=($(cat scorers.txt))

heading "3. The study is published and offered; the hospitals look at it and approve"
run gliofed-server study coordinator protocol.toml --initial "$initial"
echo; show gliofed-server serve coordinator "&"
begin serve.log gliofed-server serve coordinator; servers=($!)
for site in "${sites[@]}"; do
    show gliofed-site run "$site" "&"
    begin "$site.log" gliofed-site run "$site"; servers+=($!)
done
check=(gliofed-site check "${sites[0]}" --spacing-mm 3.75 --workers 1)
begin check.txt "${check[@]}"; checking=$!
for site in "${sites[@]}"; do until_true 120 test -f "$site/studies/demo/protocol.json"; done
run gliofed-site studies "${sites[0]}"
digest=$(gliofed-site studies "${sites[0]}" --json | sed -n 's/.*"protocol": "\([0-9a-f]\{16\}\).*/\1/p')
approving=()
for site in "${sites[@]}"; do
    begin "$site-approve.txt" gliofed-site approve "$site" demo --digest "$digest" \
        --by "Data officer of $site"
    approving+=($!)
done
for i in "${!sites[@]}"; do
    echo; show gliofed-site approve "${sites[$i]}" demo --digest "$digest" --by "Data officer of ${sites[$i]}"
    await "${approving[$i]}" "${sites[$i]}-approve.txt"
done
echo; show "${check[@]}"
await "$checking" check.txt

heading "4. The study runs. What is joining worth? Beside it each hospital trains alone, with as many steps"
for way in "${ways[@]}"; do
    for site in "${trainers[@]}"; do
        show gliofed-site train-alone "$site" demo --initial "initial-$network.safetensors" "--$way" \
            --out "$site-$way.safetensors" "&"
    done
done
launch=(gliofed-server launch coordinator demo)
echo; show "${launch[@]}"
${tied[@]+"${tied[@]}"} "${launch[@]}" & launched=$!
alone=() outputs=() ended=0
for way in "${ways[@]}"; do
    for site in "${trainers[@]}"; do
        # One more at a time than there are cores, and behind the study: so none trains on alone at the end.
        if [ $((${#alone[@]} - ended)) -gt "$cores" ]; then
            await "${alone[$ended]}" "${outputs[$ended]}"; ended=$((ended + 1))
        fi
        begin "$site-$way.txt" nice -n 5 gliofed-site train-alone "$site" demo --initial "$initial" \
            "--$way" --out "$site-$way.safetensors"
        alone+=($!) outputs+=("$site-$way.txt")
    done
done
wait "$launched"
run gliofed-server status coordinator

heading "5. The model is released and signed; a hospital verifies, scores and installs it"
for pid in "${servers[@]}"; do kill "$pid" || true; done   # nothing of what follows needs them
read -r clinic kind case <clinic.txt
run gliofed-server release coordinator demo --out model
run gliofed-site install "$clinic" model
run gliofed-site budget "$clinic"
run gliofed-site audit "$clinic"

case $kind in
test) heading "6. A clinician segments a patient whom no hospital trained on" ;;
validation) heading "6. A clinician segments a validation patient, whom no hospital trained on; none is held out" ;;
*) heading "6. A clinician segments a patient whom the study TRAINED ON: no hospital has another one" ;;
esac
run gliofed-clinic segment "$case" --out segmentation --site "$clinic"

heading "7. Was it worth it?"
for ((; ended < ${#alone[@]}; ended++)); do await "${alone[$ended]}" "${outputs[$ended]}"; done
scored=()
for site in ${scorers[@]+"${scorers[@]}"}; do
    weights=(--weights "$initial" --weights model/weights.safetensors)
    for way in "${ways[@]}"; do
        for other in "${trainers[@]}"; do weights+=(--weights "$other-$way.safetensors"); done
    done
    echo "\$ gliofed-site evaluate $site demo --weights FILE ... --json >$site-scores.json &"
    ${tied[@]+"${tied[@]}"} gliofed-site evaluate "$site" demo "${weights[@]}" --json \
        >"$site-scores.json" & scored+=($!)
done
for pid in ${scored[@]+"${scored[@]}"}; do wait "$pid"; done
show gliofed-server status coordinator demo --json ">status.json"
gliofed-server status coordinator demo --json >status.json
echo
python "$here/summary.py" table "${ways[@]}"
heading ""
echo
echo "Everything is in $work: the model in model/, the segmentation in segmentation/ (look at"
echo "overview.png). It took $(($(date +%s) - began)) seconds."
