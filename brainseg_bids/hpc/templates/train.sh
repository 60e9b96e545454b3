{% extends "group.sh" %}
{% block tasks %}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node={{ devices }}
{% endblock %}
{% block requeue %}
#SBATCH --requeue
{% endblock %}
{% block signal %}
#SBATCH --signal=B:USR1@300
{% endblock %}
{% block body %}
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
{{ prologue | join("\n") }}
mkdir -p {{ scratch }}
# Before its time is over Slurm signals this shell. It hands the signal to srun, srun to brainseg,
# which saves and ends with {{ saved }}: then the job goes back into the queue and goes on from there.
# Signals are heard before there is a step, too.
step=
in_time=
ended=
trap 'again=yes; in_time=yes; [ -z "$step" ] || kill -USR1 "$step"' USR1
trap 'again=yes; ended=yes; [ -z "$step" ] || kill -TERM "$step"' TERM
{% if handed_in %}
{# Hands each task's own place among the others into a container with a clean environment. #}
srun --kill-on-bad-exit=0 --wait=1800 bash -c 'for name in ${!SLURM_@}; do export{% for prefix in handed_in %} "{{ prefix }}_$name=${!name}"{% endfor %}; done; exec "$@"' brainseg \
    {{ command | lines }} &
{% else %}
srun --kill-on-bad-exit=0 --wait=1800 {{ command | lines }} &
{% endif %}
step=$!
[ -z "$in_time" ] || kill -USR1 "$step"
[ -z "$ended" ] || kill -TERM "$step"
again=yes
while [ "$again" ]; do
    again=
    wait "$step"
    code=$?
done
if [ "$in_time" ] && [ "$code" -eq {{ saved }} ] && [ "${SLURM_RESTART_COUNT:-0}" -lt {{ most_restarts }} ]; then
    echo "saved; back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
{% endblock %}
