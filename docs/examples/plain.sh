#!/bin/bash
# An agent that speaks the protocol of NATS itself: it needs bash alone, no program, nothing of flock.
# It counts words. How to install it: plain-agents.toml
LC_ALL=C # so that lengths are bytes
address=${NATS_URL#nats://}
exec {bus}<>"/dev/tcp/${address%:*}/${address#*:}" || exit 1

publish() {
    printf 'PUB %s %d\r\n%s\r\n' "$1" "${#2}" "$2" >&"$bus"
}
now() {
    TZ=UTC printf '"at":"%(%FT%TZ)T"' -1
}
# Inside a text of JSON a quote has a backslash before it, so the text cannot pass for another key.
id_of='"id": *"([^"]*)"' text_of='"text": *"(([^"\]|\\.)*)"'
work() {
    local id text
    [[ $1 =~ $id_of ]] && id=${BASH_REMATCH[1]}
    [[ $1 =~ $text_of ]] && printf -v text %b "${BASH_REMATCH[1]}"
    publish "agent.$AGENT_ID.events" "{$(now),\"event\":\"task-started\",\"task\":\"$id\"}"
    read -r -d '' -a words <<<"$text"
    publish task.result "{\"task\":\"$id\",\"output\":\"${#words[@]} words\"}"
    echo "task $id: ${#words[@]} words" # goes to the journal
}
printf 'CONNECT {"user":"%s","pass":"%s","verbose":false}\r\nSUB tasks.* 1\r\n' "$NATS_USER" "$NATS_PASSWORD" >&"$bus"
next=0 line=
while IFS= read -r -t 1 -u "$bus" part || (($? > 128)); do # above 128: nothing came in time
    ((SECONDS < next)) || { publish "agent.$AGENT_ID.heartbeat" "{$(now)}"; next=$((SECONDS + 30)); }
    line+=$part
    [[ $line == *$'\r' ]] || continue
    case $line in
        MSG\ *) size=${line##* }; IFS= read -r -N "$((${size%$'\r'} + 2))" -u "$bus" task; work "$task" ;;
        PING*) printf 'PONG\r\n' >&"$bus" ;;
        -ERR*) echo "the bus says $line" ;;
    esac
    line=
done
echo "the bus closed the connection" # and PID 1 starts the agent again
exit 1
