#!/usr/bin/env bash
# Hospitals train one tumour model together, on this machine: real processes, TLS, keys, signatures,
# patient-level differential privacy. Every line that begins with $ is a command that you can type.
#
#   demo.sh FOLDER          three phantom hospitals
#   demo.sh FOLDER DATA     one hospital for each subfolder of DATA
#
# DEMO_NETWORK=dynunet      that network in place of the protocol's: the word network.name is changed
# DEMO_PATIENTS=12          so many phantom patients a hospital
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${1:?usage: demo.sh FOLDER [DATA]}
data=${2:-}
[ -z "$data" ] || data=$(cd "$data" && pwd)
export OMP_NUM_THREADS=1             # several hospitals share this machine's cores
patients=${DEMO_PATIENTS:-34}
cores=$(nproc 2>/dev/null || echo 2)
network=${DEMO_NETWORK:-$(sed -n 's/^name = "\([a-z_]*\)".*/\1/p' "$here/protocol.toml")}
initial="$here/initial-$network.safetensors"   # trained on phantoms only: `make initial`

pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
}
trap finish EXIT
run() {
    local word line="\$"
    for word in "$@"; do [[ $word == *" "* ]] && line+=" \"$word\"" || line+=" $word"; done
    echo; echo "$line"; "$@"
}
heading() { echo; echo "=== $* ($(($SECONDS)) s)"; }
until_true() { # seconds, command...: wait until the command succeeds
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $end ]; then echo "waited in vain for: $*" >&2; return 1; fi
        sleep 0.5
    done
}

rm -rf "$work"; mkdir -p "$work"; cd "$work"
sed "s/^name = \"[a-z_]*\"/name = \"$network\"/" "$here/protocol.toml" >protocol.toml
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

heading "1. The coordinator founds a consortium"
run gliofed-server init coordinator --name "Demo consortium" --host 127.0.0.1 --port "$port"

heading "2. Hospitals and their data"
sites=()
if [ -n "$data" ]; then
    for folder in "$data"/*/; do
        sites+=("$(basename "$folder")"); ln -s "$folder" "data-$(basename "$folder")"
    done
else
    sites=(hospital-a hospital-b hospital-c)
    profiles=(3t-research 1.5t-community 3t-lowgrade)
    making=()
    for i in 0 1 2; do
        echo "\$ gliofed-site phantoms data-${sites[$i]} --profile ${profiles[$i]}" \
            "--patients $patients --seed $((i + 1))"
        gliofed-site phantoms "data-${sites[$i]}" --profile "${profiles[$i]}" \
            --patients "$patients" --seed "$((i + 1))" & making+=($!)
    done
    for pid in "${making[@]}"; do wait "$pid"; done
fi

heading "3. They join: keys are made at the hospital and stay there"
for site in "${sites[@]}"; do
    run gliofed-site request "$site" --name "$site" --data "data-$site"
    # Several hospitals share this machine's cores.
    sed "s/^threads = 0/threads = 1/" "$site/site.toml" >"$site.toml" && mv "$site.toml" "$site/site.toml"
    run gliofed-server admit coordinator "$site/request.json" --out "$site-kit.json"
    run gliofed-site join "$site" "$site-kit.json"
done

heading "4. The study is published and offered; each hospital looks at it and approves"
run gliofed-server study coordinator protocol.toml --initial "$initial"
echo; echo "\$ gliofed-server serve coordinator &"
gliofed-server serve coordinator >serve.log 2>&1 & pids+=($!)
for site in "${sites[@]}"; do
    echo "\$ gliofed-site run $site &"
    gliofed-site run "$site" >"$site.log" 2>&1 & pids+=($!)
done
checking=()
for site in "${sites[@]}"; do
    gliofed-site check "$site" --spacing-mm 3.75 --workers 1 >"$site-check.txt" 2>&1 &
    checking+=($!)
done
for pid in "${checking[@]}"; do wait "$pid"; done
run cat "${sites[0]}-check.txt"
for site in "${sites[@]}"; do until_true 120 test -f "$site/studies/demo/protocol.json"; done
run gliofed-site studies "${sites[0]}"
for site in "${sites[@]}"; do run gliofed-site approve "$site" demo --by "Data officer of $site"; done

heading "5. What is joining worth? Each hospital also trains alone, with as many steps"
alone=()
for privacy in private no-private; do
    for site in "${sites[@]}"; do
        # As many at a time as there are cores: more would only take turns.
        if [ ${#alone[@]} -ge "$cores" ]; then wait "${alone[0]}"; alone=("${alone[@]:1}"); fi
        echo "\$ gliofed-site train-alone $site demo --initial initial-$network.safetensors --$privacy" \
            "--out $site-$privacy.safetensors"
        gliofed-site train-alone "$site" demo --initial "$initial" --"$privacy" \
            --out "$site-$privacy.safetensors" & alone+=($!)
    done
done
for pid in "${alone[@]}"; do wait "$pid"; done

heading "6. The study runs"
run gliofed-server launch coordinator demo
run gliofed-server status coordinator

heading "7. The model is released and signed; a hospital verifies, scores and installs it"
run gliofed-server release coordinator demo --out model
run gliofed-site install "${sites[0]}" model
run gliofed-site budget "${sites[0]}"
run gliofed-site audit "${sites[0]}"

heading "8. A clinician segments a patient that no site trained on"
case=$(python "$here/summary.py" held-out "${sites[0]}")
run gliofed-clinic segment "$case" --out segmentation --site "${sites[0]}"

heading "9. Was it worth it?"
scored=()
for site in "${sites[@]}"; do
    weights=(--weights "$initial" --weights model/weights.safetensors)
    for privacy in private no-private; do
        for other in "${sites[@]}"; do weights+=(--weights "$other-$privacy.safetensors"); done
    done
    gliofed-site evaluate "$site" demo "${weights[@]}" --json >"$site-scores.json" & scored+=($!)
done
for pid in "${scored[@]}"; do wait "$pid"; done
echo; echo "\$ gliofed-server status coordinator demo --json >status.json"
gliofed-server status coordinator demo --json >status.json
python "$here/summary.py" table status.json "${sites[@]}"
echo
echo "Everything is in $work: the model in model/, the segmentation in segmentation/ (look at"
echo "overview.png). It took $SECONDS seconds."
