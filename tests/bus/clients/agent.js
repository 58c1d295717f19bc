// A plain agent in Node.js: nothing but the npm package `nats` and the environment.
const { connect, StringCodec } = require("nats");
const { AGENT_ID: me, NATS_URL, NATS_USER, NATS_PASSWORD } = process.env;
const text = StringCodec();

(async () => {
  const bus = await connect({ servers: NATS_URL, user: NATS_USER, pass: NATS_PASSWORD });
  bus.subscribe("tasks.*", {
    callback: (_, message) => {
      const task = JSON.parse(text.decode(message.data));
      const result = { task: task.id, output: task.text.toUpperCase(), seen: message.subject };
      bus.publish("task.result", text.encode(JSON.stringify(result)));
    },
  });
  bus.subscribe("broadcast", {
    callback: (_, message) => {
      const event = { at: new Date().toISOString(), event: "heard", detail: text.decode(message.data) };
      bus.publish(`agent.${me}.events`, text.encode(JSON.stringify(event)));
    },
  });
  const beat = () => bus.publish(`agent.${me}.heartbeat`, text.encode("{}"));
  beat();
  setInterval(beat, 30000);
})();
