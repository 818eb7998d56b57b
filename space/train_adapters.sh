#!/bin/sh
# The adapters of the Space for the embedded base: sh space/train_adapters.sh GLUE [NAME ...]
#
# GLUE is a folder with <task>/train.parquet and validation.parquet. One to two hours on two cores. An adapter that has its
# results.json is not trained again. The ranks keep a folder below 700 kB; the tokenizer (another 700 kB) is the base's
# own and does not stay. Fewer epochs and larger batches where there are more rows.
set -eu
glue=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- wnli cola sst2 qqp mnli mrpc stsb rte qnli sst2-lora-II
mkdir -p "$(dirname "$0")/adapters"
cd "$(dirname "$0")/adapters"

for name; do
    [ -e "$name/results.json" ] && continue
    task=${name%%-*} strategy=spafit-4-9-II rank=12 rate=1e-3 epochs=3 batch=16 more=
    case $name in *-lora-II) strategy=lora-II rank=8 ;; esac  # to compare with: LoRA in every layer, of the same size
    case $task in
        cola) epochs=8 ;;
        rte) epochs=5 more="--init_adapter mnli" ;;  # which has to be there
        mrpc) more="--first_token_only on --init_adapter mnli --both_orders" ;;  # six epochs of pairs in all
        stsb) epochs=4 rate=5e-4 more="--first_token_only on --init_adapter mnli --both_orders" ;;
        sst2) epochs=5 batch=32 more="--first_token_only on" ;;
        qqp) epochs=6 batch=32 more="--first_token_only on" ;;
        qnli) epochs=6 batch=32 more="--first_token_only on" ;;
        mnli) epochs=8 batch=32 more="--first_token_only on" ;;
    esac
    spafit train --task "$task" --data_dir "$glue" --base embedded --strategy $strategy \
        --lora_r $rank --lora_alpha $rank --learning_rate $rate --num_train_epochs $epochs \
        --per_device_train_batch_size $batch --warmup_steps 0.06 --bf16 --use_cpu $more \
        --save_strategy no --load_best_model_at_end false --output_dir "$name"
    rm "$name"/tokenizer*
    spafit card "$name"
done
