# Prints what bash offers to complete the command line in the arguments; bash-completion loads ours.
. /usr/share/bash-completion/bash_completion
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMP_LINE="$*"
COMP_POINT=${#COMP_LINE}
_completion_loader "$1" 2>/dev/null || __load_completion "$1" || _comp_load "$1"
$(complete -p "$1" | sed 's/.*-F \([^ ]*\) .*/\1/') "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}" | sort
