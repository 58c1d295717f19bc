// An agent of one's own in Node.js. It needs the npm package nats, and nothing of flock:
//   npm install --prefix /opt/my-node-agent nats && cp agent.mjs /opt/my-node-agent/
import { connect } from "nats";

const { NATS_URL, NATS_USER, NATS_PASSWORD } = process.env;
const bus = await connect({ servers: NATS_URL, user: NATS_USER, pass: NATS_PASSWORD });
for await (const message of bus.subscribe("tasks.*")) {
    const task = message.json();
    const result = { task: task.id, output: task.text.toUpperCase() };
    bus.publish("task.result", JSON.stringify(result));
}
