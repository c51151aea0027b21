#!/usr/bin/env bash
# Start the container with the data mounted; `launch_container.sh --help` says how.
# Run it, or source it from bash or zsh. The function's body is a subshell, so sourcing it cannot end the caller's
# shell, and leaves neither options nor variables behind.

launch_container() (
    usage() {
        command cat <<'USAGE'
usage: launch_container.sh [options] TXT_DB IMG_DB OUTPUT PRETRAIN

Start the crossmodal container with four existing folders and this checkout mounted:

    TXT_DB     text databases            /txt        read-only
    IMG_DB     image databases           /img        read-only
    OUTPUT     runs are written here     /storage
    PRETRAIN   pre-trained checkpoints   /pretrain   read-only
    (the folder of this script)          /src

Options, before or after the folders:

    --cpu          use no GPU
    --image NAME   the image to start (default: crossmodal)
    --dry-run      print the command instead of running it; needs the folders, but neither docker nor a GPU
    --help         print this text

CUDA_VISIBLE_DEVICES chooses the GPUs: all where it is unset, none where it is empty or -1.
The container acts as you, so that what it writes is yours.
The status is 2 for a mistake in the arguments, 127 without docker, 125 where docker's engine does not answer or
lacks the image or the GPUs, else that of docker.
USAGE
    }
    fail() {
        printf 'launch_container.sh: %s\n' "$1" >&2
        exit "${2:-2}"
    }
    # The command as one line that a shell reads back as the same words.
    show() {
        line=
        for word in "$@"; do
            case $word in
                '' | *[!A-Za-z0-9_./:=,@%+-]*)
                    word="'$(printf '%s' "$word" | command sed "s/'/'\\\\''/g")'" ;;
            esac
            line="$line${line:+ }$word"
        done
        printf '%s\n' "$line"
    }
    # The absolute form of a folder, in $absolute. A mount is written with commas and quotes of its own.
    resolve() {
        [ -d "$2" ] || fail "$1: there is no folder $2; make it, or give the one that is meant"
        absolute=$(CDPATH='' cd -- "$2" >/dev/null 2>&1 && pwd) || fail "$1: the folder $2 cannot be entered"
        case $absolute in
            *[,\"]*) fail "$1: docker cannot mount $absolute, whose name holds a comma or a quote; rename it" ;;
        esac
    }
    # What docker would only say after a while, or in words of its own. $user is root where the engine runs as the
    # caller: root inside is then the caller outside.
    check_docker() {
        command -v docker >/dev/null 2>&1 ||
            fail "docker is not installed or not on PATH; install it, or see the command with --dry-run" 127
        engine=$(command docker info --format '{{json .}}') ||
            fail "docker's engine does not answer; start it, or get the right to use it" 125
        case $engine in
            *name=rootless*) user=0:0 ;;
        esac
        [ "$image" != crossmodal ] || command docker image inspect crossmodal >/dev/null 2>&1 ||
            fail "there is no image crossmodal; build it in $source_folder with: docker build -t crossmodal ." 125
        [ "$cpu" = no ] || return 0
        case $engine in
            *'"nvidia":{'* | *nvidia.com/gpu*) ;;
            *)
                command -v nvidia-container-runtime-hook >/dev/null 2>&1 ||
                    fail "docker has no NVIDIA runtime; install the NVIDIA Container Toolkit, or use no GPU: --cpu" 125
                ;;
        esac
    }

    if [ -n "${ZSH_VERSION:-}" ]; then
        eval 'script=${(%):-%x}' # this file's name, which bash would not read
        emulate -R zsh
    else
        script=${BASH_SOURCE[0]}
        set +eu
    fi
    cpu=no
    dry_run=no
    image=crossmodal
    folders=()
    while [ $# -gt 0 ]; do
        case $1 in
            --cpu) cpu=yes ;;
            --dry-run) dry_run=yes ;;
            --image) [ $# -gt 1 ] || fail "--image needs a name"; image=$2; shift ;;
            --image=*) image=${1#--image=} ;;
            --help | -h) usage; exit 0 ;;
            --) shift; break ;;
            -*) fail "there is no option $1; --help lists them" ;;
            *) folders+=("$1") ;;
        esac
        shift
    done
    folders+=("$@")
    [ -n "$image" ] || fail "--image needs a name"
    [ "${#folders[@]}" -eq 4 ] ||
        fail "needs four folders, TXT_DB IMG_DB OUTPUT PRETRAIN, and got ${#folders[@]}; --help says more"
    set -- "${folders[@]}"

    resolve "the source" "$(command dirname -- "$script")"
    source_folder=$absolute
    resolve TXT_DB "$1"; txt=$absolute
    resolve IMG_DB "$2"; img=$absolute
    resolve OUTPUT "$3"; output=$absolute
    resolve PRETRAIN "$4"; pretrain=$absolute

    gpus=()
    case ${CUDA_VISIBLE_DEVICES-all} in
        '' | -1) cpu=yes ;;
        all) gpus=(--gpus all -e NVIDIA_VISIBLE_DEVICES=all) ;;
        *) gpus=(--gpus "\"device=$CUDA_VISIBLE_DEVICES\"" -e "NVIDIA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES") ;;
    esac
    [ "$cpu" = no ] || gpus=()
    terminal=-i
    [ -t 0 ] && terminal=-it
    user=$(command id -u):$(command id -g)
    [ "$dry_run" = yes ] || check_docker

    # The caller has no home in the image: caches go to /tmp.
    set -- docker run "${gpus[@]}" --ipc=host --rm "$terminal" --user "$user" -e HOME=/tmp \
        --mount "src=$source_folder,dst=/src,type=bind" \
        --mount "src=$output,dst=/storage,type=bind" \
        --mount "src=$pretrain,dst=/pretrain,type=bind,readonly" \
        --mount "src=$txt,dst=/txt,type=bind,readonly" \
        --mount "src=$img,dst=/img,type=bind,readonly" \
        -w /src "$image"
    if [ "$dry_run" = yes ]; then
        show "$@"
    else
        command "$@"
    fi
)

launch_container "$@"
