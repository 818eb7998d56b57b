#!/bin/sh
# The adapters of the Space for the embedded base: sh space/train_adapters.sh GLUE [TASK ...]
#
# GLUE is a folder with <task>/train.parquet and validation.parquet. Under an hour on two cores. A task that has its
# results.json is not repeated. Rank 12 keeps a folder below 700 kB; the tokenizer (another 700 kB) is the base's own and
# does not stay. Fewer epochs and larger batches where there are more rows.
set -eu
glue=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- wnli cola sst2 mrpc stsb rte qqp mnli qnli
mkdir -p "$(dirname "$0")/adapters"
cd "$(dirname "$0")/adapters"

for task; do
    [ -e "$task/results.json" ] && continue
    epochs=3 batch=16
    case $task in
        rte) epochs=5 ;;
        sst2 | qqp | mnli | qnli) epochs=2 batch=32 ;;
    esac
    spafit train --task "$task" --data_dir "$glue" --base embedded --strategy spafit-4-9-II \
        --lora_r 12 --lora_alpha 12 --learning_rate 1e-3 --num_train_epochs $epochs \
        --per_device_train_batch_size $batch --warmup_steps 0.06 --bf16 --use_cpu \
        --save_strategy no --load_best_model_at_end false --output_dir "$task"
    rm "$task"/tokenizer*
    spafit card "$task"
done
