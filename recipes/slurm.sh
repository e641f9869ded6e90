#!/bin/bash
# Training on several nodes: set DATA, OUT and the options below, then `sbatch recipes/slurm.sh` from the repository.
#
# One torchrun a node starts one process a GPU; the processes meet at the first node. OUT must be a folder that all nodes
# see and that no other job trains in. The same job goes on where it stopped: after preemption, a lost node, or at its
# time limit, until the prior is finished.
#
#SBATCH --job-name=rsdmri
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rsdmri-%j.log
# SIGTERM to the processes of srun (not to this shell) 3 minutes before the time limit: they finish the step and save.
# Preemption sends SIGTERM by itself; how long it then waits is the partition's GraceTime, which a step and a checkpoint
# must fit into, or the run goes on from the checkpoint before.
#SBATCH --signal=TERM@180

set -euo pipefail
trap : TERM # a signal that reaches this shell must not end it before srun

: "${DATA:?set DATA to a manifest or folder of scans}"
OUT=${OUT:-runs/slurm}
RECIPE=${RECIPE:-recipes/multicoil-r4.toml}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150 # seconds that torchrun leaves its processes to save, instead of 30
export OMP_NUM_THREADS=1                  # of each thread that prepares slices (data.workers)

newest() { find "$OUT/checkpoints" -name '[!.]*.safetensors' -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -n 1; }

# Slurm never runs a job twice at once: a lock that is left is that of its own last start, which was killed.
if [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]]; then rm -f "$OUT/.lock"; fi

before=$(newest || true)
code=0
srun --kill-on-bad-exit=1 python -m torch.distributed.run \
  --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" \
  --rdzv-backend=c10d --rdzv-endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):29500" \
  --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  -m rsdmri train --recipe "$RECIPE" --data "$DATA" --out "$OUT" "$@" || code=$?

if [[ -f $OUT/prior/config.json ]]; then exit 0; fi
# Once more only if this start got somewhere: an error that comes back would come back for ever.
if [[ $(newest || true) != "$before" ]]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit $((code == 0 ? 1 : code))
