#!/bin/bash
# Runs a command inside a container with the job's own variables. An image sets variables too (NVIDIA's: PYTHONPATH),
# and with pyxis its values win over the job's. So functions.sh passes the job's values under names that no image has.
#
#     bash in_container.sh COMMAND...
if [ -n "${IN_CONTAINER_PYTHONPATH-}" ]; then # what the job brings along comes first, and the image keeps its own
    IN_CONTAINER_PYTHONPATH+=${PYTHONPATH:+:$PYTHONPATH}
fi
for name in "${!IN_CONTAINER_@}"; do
    export "${name#IN_CONTAINER_}=${!name}"
    unset "$name"
done
export PYTHONPATH="${LAUNCHER_PYTHONPATH}${PYTHONPATH:+:$PYTHONPATH}"
exec "$@"
