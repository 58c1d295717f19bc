// An agent that speaks the protocol of NATS itself: it needs Node.js alone, no package, nothing of flock.
// It counts words. How to install it: plain-agents.toml
import net from "node:net";

const { AGENT_ID, NATS_URL, NATS_USER: user, NATS_PASSWORD: pass } = process.env;
const { hostname: host, port } = new URL(NATS_URL);
const bus = net.connect({ host, port });

function publish(subject, message) {
    const body = JSON.stringify(message);
    bus.write(`PUB ${subject} ${Buffer.byteLength(body)}\r\n${body}\r\n`);
}
function work(task) {
    publish(`agent.${AGENT_ID}.events`, { at: new Date(), event: "task-started", task: task.id });
    const count = task.text.split(/\s+/).filter(Boolean).length;
    publish("task.result", { task: task.id, output: `${count} words` });
    console.log(`task ${task.id}: ${count} words`); // goes to the journal
}
bus.write(`CONNECT ${JSON.stringify({ user, pass, verbose: false })}\r\nSUB tasks.* 1\r\n`);
const heartbeat = () => publish(`agent.${AGENT_ID}.heartbeat`, { at: new Date() });
heartbeat();
setInterval(heartbeat, 30_000);

let rest = Buffer.alloc(0);
bus.on("data", (part) => {
    rest = Buffer.concat([rest, part]);
    for (let end; (end = rest.indexOf("\r\n")) >= 0; rest = rest.subarray(end + 2)) {
        const line = rest.subarray(0, end).toString(), size = Number(line.split(" ").at(-1));
        if (line === "PING") bus.write("PONG\r\n");
        if (line.startsWith("-ERR")) console.log("the bus says", line);
        if (!line.startsWith("MSG ")) continue;
        if (rest.length < end + 2 + size + 2) return; // the message is not whole yet
        work(JSON.parse(rest.subarray(end + 2, (end += 2 + size))));
    }
});
bus.on("close", () => process.exit(1)); // and PID 1 starts the agent again
