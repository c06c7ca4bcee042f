#!/bin/bash
# One merge on a Slurm cluster: plan it, merge its weight files as an array, commit.
#
#   ./merge.sh recipe.yaml /shared/merged 16
set -euo pipefail

recipe=$1 output=$2 tasks=$3
plan="$output.plan.json"
sensmerge plan "$recipe" "$output" -o "$plan"

# What this command may do again: wait for other tasks (75), a file system that failed (1).
again='for try in 1 2 3 4 5; do
  sensmerge merge --plan "$PLAN" --shard-from-env --wait 3600 --quiet && exit 0
  code=$?
  [ "$code" -eq 1 ] || [ "$code" -eq 75 ] || exit "$code"
  sleep 30
done
exit "$code"'

array=$(PLAN=$plan sbatch --parsable --job-name=merge --array="1-$tasks" --cpus-per-task=8 \
    --requeue --export=ALL --wrap "$again")
PLAN=$plan sbatch --job-name=commit --dependency="afterok:$array" --export=ALL \
    --wrap 'sensmerge merge --plan "$PLAN" --commit'
