#!/usr/bin/env bash
# The tables in docs/results.md and the README: `benchmarks/compare.sh PART`, in a clone with its environment built.
#   main        the bundled LLaMA: default, controls, ELDeR as published, baselines; 25 % and 50 %, three seeds
#   selections  every selection with nothing trained after it, one seed
#   ablations   the paper's two: without stage 2, and one-shot; for both places of the layer weight; the authors' code, one seed
#   parts       the default recipe without each of its parts, and with others; and the compensations with nothing trained
#               but by refit; on two bundled models, one seed
#   families    two models of other families that nothing was tuned on, one seed
#   smollm2     SmolLM2-135M, which others trained: the default against what was strongest before it, 8 and 15 of 30
#               layers, five tasks, one seed; WIKITEXT as below, the model as `make real` fetches it
#   texts       calibration and evaluation on other texts; WIKITEXT names a folder with valid.txt and test.txt
# Each goes on where it was cut. Several rows at once, on Ray (docs/many-devices.md):
# ELDER=.venv/bin/elder ELDER_SET=launch.ray=auto benchmarks/compare.sh PART. Results: benchmarks/results/.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
elder=${ELDER:-.venv/bin/python -m elder}

# name, rows, further options
compare() {
    local name=$1 rows=$2
    shift 2
    $elder compare --methods "$rows" --set evaluate.tasks=[] --set evaluate.max_tokens=32768 \
        --output "build/compare/$name" "$@" > /dev/null
    mkdir -p benchmarks/results
    for kind in md csv json; do cp "build/compare/$name/table.$kind" "benchmarks/results/$name.$kind"; done
    for chart in build/compare/"$name"/chart-*.png; do cp "$chart" "benchmarks/results/$name-${chart##*-}"; done
}

# The controls get the whole budget of 6.6 passes for their recovery, as much as the default spends in all; but next-token
# training, which after two passes learns the text by heart: with more it gets worse.
controls='sleb+distil[recover.epochs=6.6],shortgpt+distil[recover.epochs=6.6],sleb+train[recover.epochs=2]'

case ${1:-} in
main) compare novels-llama "default,$controls,elder,sleb,shortgpt,random,last" --ratios 0.25,0.5 --seeds 0,1,2 ;;
selections)
    compare selections "elder[select.elder.place=residual,regularise.epochs=0],elder[regularise.epochs=0],sleb,shortgpt,$(
    )prune-comp,laco,angular,shortened-ppl,shortened-taylor,random,last" --ratios 0.25,0.5
    ;;
ablations)
    compare ablations "elder,elder[regularise.epochs=0],elder[select.elder.iterative=false],elder[select.elder.place=residual],$(
    )elder[select.elder.place=residual,regularise.epochs=0],elder[select.elder.place=residual,select.elder.iterative=false],$(
    )elder-authors,elder-authors[regularise.epochs=0],sleb" --ratios 0.25
    ;;
parts)
    rows="default,default[select.elder.written=0,select.elder.runners_up=0,select.elder.shortlist=4],$(
    )default[select.elder.runners_up=0,select.elder.shortlist=1],default[recover.distil.synthetic=0],$(
    )default[recover.optimizer=adamw],default[recover.optimizer=muon],shortgpt,prune-comp,prune-comp[compensate.method=none],sleb"
    for one in refit ghost linear flatten concatenate halves magnitude merge; do
        rows="$rows,default[compensate.method=$one],sleb+$one"
    done
    for name in novels-llama novels-opt; do
        compare "parts-$name" "$rows" --model "models/$name" --ratios 0.25
    done
    ;;
families)
    for name in novels-opt novels-neox; do
        compare "$name" "default,$controls,elder,sleb,shortgpt,random,last" --model "models/$name" --ratios 0.25,0.5
    done
    ;;
smollm2)
    # the choice of layers of the former default, and nothing mended
    former='default[select.elder.written=0,select.elder.runners_up=0,select.elder.shortlist=4,compensate.method=none'
    compare smollm2 "default,$former],$former,recover.distil.synthetic=0],shortgpt+distil[recover.epochs=6.6],$(
    )sleb+distil[recover.epochs=6.6,select.sleb.racing=0.95],shortgpt" --layers 8,15 --params presets/smollm2.yaml \
        --set calibration.samples=128 --set "calibration.source=${WIKITEXT:?a folder with valid.txt and test.txt}/valid.txt" \
        --set evaluate.tasks=[piqa,winogrande,arc_easy,arc_challenge,lambada_openai]
    ;;
texts)
    texts=data/calibration.txt,${WIKITEXT:?a folder with valid.txt and test.txt}/valid.txt
    compare texts "default,sleb,shortgpt" --ratios 0.25 --calibrations "$texts" \
        --set "evaluate.in_domain=$WIKITEXT/test.txt"
    ;;
*)
    sed -n '2,13p' "$0" >&2
    exit 2
    ;;
esac
