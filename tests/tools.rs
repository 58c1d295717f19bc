//! Tools with real processes: the stand-in, the broker, and what the kernel refuses.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flock::agent::tools::broker::{Broker, CALLS_MAX, Operator};
use flock::agent::tools::{Tools, confine};
use flock::bus::ask::{Answer, Ask};
use flock::names::AgentId;
use flock::tools::shape::Shape;
use flock::tools::{Action, Rules, Tool};

const AGENT: &str = env!("CARGO_BIN_EXE_flock-agent");

/// What an operator says to a question that is asked for the n-th time.
type Answers = fn(&Ask, usize) -> Result<Answer, String>;

/// An operator who answers with a function of how often it was asked, and what it heard.
#[derive(Clone)]
struct Desk {
    answer: Answers,
    heard: Arc<Mutex<Vec<String>>>,
    asked: Arc<Mutex<usize>>,
}

impl Operator for Desk {
    async fn ask(&self, ask: &Ask) -> Result<Answer, String> {
        let count = {
            let mut asked = self.asked.lock().unwrap();
            *asked += 1;
            *asked
        };
        (self.answer)(ask, count)
    }

    async fn tell(&self, event: &'static str, task: Option<&str>, detail: String) {
        let task = task.unwrap_or("-");
        self.heard.lock().unwrap().push(format!("{event} {task} {detail}"));
    }
}

fn tool(command: &[&str], rest: Action) -> Tool {
    Tool {
        command: command.iter().map(|&w| w.to_owned()).collect(),
        deny: vec![],
        ask: vec![],
        allow: vec![],
        rest,
        timeout: 20,
        output_limit: 1000,
        ask_timeout: 2,
    }
}

fn rules() -> Rules {
    let allow = |words: &[&str]| Shape::new(words.iter().map(|&w| w.to_owned()).collect()).unwrap();
    let echo = Tool {
        allow: vec![allow(&["hello", "*"]), allow(&["err"])],
        ..tool(&["/bin/echo", "-n"], Action::Deny)
    };
    let quick = Tool { timeout: 1, ..tool(&["/bin/sh", "-c"], Action::Allow) };
    let tools = [
        ("say", echo),
        ("sh-c", tool(&["/bin/sh", "-c"], Action::Allow)),
        ("quick", quick),
        ("ask", tool(&["/bin/echo"], Action::Ask)),
        ("gone", tool(&["/nonexistent"], Action::Allow)),
        ("cat", tool(&["/bin/cat"], Action::Allow)),
        ("head1", tool(&["/usr/bin/head", "-c", "1"], Action::Allow)),
    ];
    let tools: BTreeMap<_, _> = tools.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
    Rules { direct: Vec::new(), tools }
}

/// A broker at work.
struct Lab {
    dir: tempfile::TempDir,
    tools: Tools,
    desk: Desk,
    _runtime: tokio::runtime::Runtime,
}

fn lab_with(rules: Rules, answer: Answers) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let tools = Tools::new(rules, dir.path()).unwrap().with_program(Path::new(AGENT));
    let desk = Desk { answer, heard: Arc::default(), asked: Arc::default() };
    let environment: Vec<(OsString, OsString)> =
        vec![("PATH".into(), "/usr/bin:/bin".into()), ("OWN".into(), "the agent's".into())];
    let id = AgentId::parse("a").unwrap();
    let broker = Broker::new(id, tools.clone(), environment, desk.clone());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime.block_on(async { broker.listen() }).unwrap();
    runtime.spawn(broker.serve(listener));
    Lab { dir, tools, desk, _runtime: runtime }
}

fn lab() -> Lab {
    lab_with(rules(), |_, _| Err("nobody is there".to_owned()))
}

impl Lab {
    fn command(&self, name: &str, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(self.tools.bin().join(name));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("FLOCK_TOOLS", self.tools.socket())
            .env("TASK_ID", "t1")
            .env("SECRET_OF_CALLER", "x")
            .stdin(Stdio::null());
        command
    }

    fn call(&self, name: &str, arguments: &[&str]) -> Output {
        self.command(name, arguments).output().unwrap()
    }

    /// What a command under the rules does.
    fn confined(&self, command: &[&str]) -> Output {
        let arguments: Vec<OsString> = command[1..].iter().map(Into::into).collect();
        let mut command = self.tools.command(command[0].as_ref(), &arguments);
        command.current_dir(self.dir.path()).output().unwrap()
    }

    fn heard(&self) -> String {
        self.desk.heard.lock().unwrap().join("\n")
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_allowed_call_runs_and_another_is_denied() {
    let lab = lab();
    let done = lab.call("say", &["hello", "you all"]);
    assert_eq!((out(&done).as_str(), done.status.code()), ("hello you all", Some(0)), "{done:?}");
    let denied = lab.call("say", &["hello", "-e"]);
    assert_eq!((out(&denied).as_str(), denied.status.code()), ("", Some(126)), "{denied:?}");
    assert_eq!(err(&denied), "flock: say: denied: no rule allows these arguments\n");
    let heard = lab.heard();
    assert!(heard.contains("tool-allowed t1 say hello \"you all\": allow = hello *"), "{heard}");
    assert!(heard.contains("tool-denied t1 say hello -e: no rule"), "{heard}");
}

#[test]
fn both_streams_the_exit_status_and_the_agents_environment_arrive() {
    let lab = lab();
    let script = "echo out; echo err >&2; echo $OWN $TASK_ID $SECRET_OF_CALLER; pwd; exit 7";
    let done = lab.call("sh-c", &[script]);
    let here = lab.dir.path().canonicalize().unwrap();
    assert_eq!(out(&done), format!("out\nthe agent's t1\n{}\n", here.display()), "{done:?}");
    assert_eq!((err(&done).as_str(), done.status.code()), ("err\n", Some(7)));
    assert_eq!(lab.call("sh-c", &["kill -9 $$"]).status.code(), Some(137));
    let gone = lab.call("gone", &[]);
    assert_eq!(gone.status.code(), Some(125));
    assert!(err(&gone).starts_with("flock: gone: run /nonexistent in "), "{gone:?}");
}

#[test]
fn a_tool_takes_of_the_standard_input_only_what_it_reads() {
    let lab = lab();
    let mut child = lab.command("cat", &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let child = child.as_mut().unwrap();
    child.stdin.take().unwrap().write_all(b"through and through").unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "through and through");
    // A shell reads its script from the same pipe: the tool must not eat the rest of it.
    let file = lab.dir.path().join("input");
    std::fs::write(&file, "abc").unwrap();
    let script = format!("{} ; /bin/cat", lab.tools.bin().join("head1").display());
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", &script]).env("FLOCK_TOOLS", lab.tools.socket());
    let done = shell.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    assert_eq!(out(&done), "abc", "{done:?}");
}

#[test]
fn output_and_time_are_bounded_and_nothing_of_the_tool_is_left() {
    let lab = lab();
    let long =
        lab.call("sh-c", &["head -c 600 /dev/zero; head -c 5000000 /dev/zero >&2; echo end"]);
    assert_eq!(long.stdout.len() + long.stderr.iter().filter(|b| **b == 0).count(), 1000);
    assert!(err(&long).ends_with("flock: sh-c: output was cut after 1000 bytes\n"));
    assert_eq!(long.status.code(), Some(0));
    let begun = Instant::now();
    let late =
        lab.call("quick", &["trap '' TERM; sleep 61.25 & echo $$; sleep 61.25; sleep 61.25"]);
    assert_eq!(late.status.code(), Some(124), "{late:?}");
    assert_eq!(err(&late), "flock: quick: ended after 1 s\n");
    assert!(begun.elapsed() < Duration::from_secs(20));
    await_sleepers("61.25", 0);
}

/// Processes that sleep for exactly this long.
fn sleepers(span: &str) -> usize {
    let wanted = format!("sleep\0{span}\0");
    let lines = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| *line == wanted).count()
}

fn await_sleepers(span: &str, count: usize) {
    let begun = Instant::now();
    while sleepers(span) != count {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", sleepers(span));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_caller_that_leaves_ends_its_tool() {
    let lab = lab();
    let mut child = lab.command("sh-c", &["sleep 62.25; sleep 62.25"]).spawn().unwrap();
    await_sleepers("62.25", 1);
    child.kill().unwrap();
    child.wait().unwrap();
    await_sleepers("62.25", 0);
}

#[test]
fn hostile_callers_cannot_stop_the_broker() {
    let lab = lab();
    let connect = || UnixStream::connect(lab.tools.socket()).unwrap();
    for bytes in [&b""[..], b"\0\0\0\x02{}", b"\xff\xff\xff\xff", b"\0\0\0\x05nojso", b"\0\0"] {
        let mut stream = connect();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.contains("\"status\":125"), "{bytes:?}: {answer}");
    }
    // Silent ones fill the places for as long as a request may take, and no longer.
    let silent: Vec<_> = (0..CALLS_MAX + 20).map(|_| connect()).collect();
    std::thread::sleep(Duration::from_millis(200));
    let busy = lab.call("say", &["err"]);
    assert_eq!(busy.status.code(), Some(125), "{busy:?}");
    assert!(err(&busy).contains("calls at once"), "{busy:?}");
    let begun = Instant::now();
    while lab.call("say", &["err"]).status.code() != Some(0) {
        assert!(begun.elapsed() < Duration::from_secs(30), "the silent ones keep their places");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(silent);
    let huge: Vec<String> = (0..600).map(|n| format!("{n}{}", "x".repeat(1000))).collect();
    let huge: Vec<&str> = huge.iter().map(String::as_str).collect();
    assert_ne!(lab.call("sh-c", &huge).status.code(), Some(0));
    assert_eq!(lab.call("say", &["err"]).status.code(), Some(0));
}

#[test]
fn a_question_waits_for_its_own_answer_and_silence_is_a_no() {
    let approve: Answers = |ask, count| match count {
        1 => Ok(Answer::Pending),
        2 => Err("no responders".to_owned()),
        _ => Ok(Answer::Approved { ask: ask.ask.clone() }),
    };

    let mut rules = rules();
    rules.tools.get_mut("ask").unwrap().ask_timeout = 20;
    let patient = lab_with(rules, approve);
    let done = patient.call("ask", &["it"]);
    assert_eq!((out(&done).as_str(), done.status.code()), ("it\n", Some(0)), "{done:?}");
    assert_eq!(*patient.desk.asked.lock().unwrap(), 3);

    let cases: [(Answers, &str); 5] = [
        (|_, _| Err("no responders".to_owned()), "nobody answered within 2 s"),
        (|_, _| Ok(Answer::Pending), "nobody answered within 2 s"),
        (|_, _| Ok(Answer::Approved { ask: "another".into() }), "for another question"),
        (
            |ask, _| Ok(Answer::Denied { ask: ask.ask.clone(), reason: Some("not today".into()) }),
            "an operator said no: not today",
        ),
        (|_, _| Ok(Answer::Refused { reason: "too many".into() }), "too many"),
    ];
    for (answer, why) in cases {
        let lab = lab_with(self::rules(), answer);
        let denied = lab.call("ask", &["it"]);
        assert_eq!((out(&denied).as_str(), denied.status.code()), ("", Some(126)), "{why}");
        assert!(err(&denied).contains(why), "{why}: {denied:?}");
        assert!(lab.heard().contains("tool-denied t1 ask it"), "{}", lab.heard());
    }
}

/// Each refusal has its control: the same without the rules works.
#[test]
fn the_kernel_refuses_what_is_not_the_commands_own() {
    if !confine::is_possible() {
        panic!("this kernel has no Landlock: nothing can be tested");
    }
    let lab = lab();
    let shell = |script: &str| lab.confined(&["/bin/sh", "-c", script]);
    let direct = shell("/bin/echo direct");
    assert_eq!((out(&direct).as_str(), direct.status.code()), ("", Some(126)), "{direct:?}");
    assert!(err(&direct).contains("Permission denied"), "{direct:?}");
    let control = std::process::Command::new("/bin/sh").args(["-c", "/bin/echo direct"]).output();
    assert_eq!(out(&control.unwrap()), "direct\n");

    let own = lab.dir.path().join("own");
    std::fs::copy("/bin/echo", &own).unwrap();
    let copied = shell("./own copied");
    assert_eq!(copied.status.code(), Some(126), "{copied:?}");
    assert_eq!(out(&std::process::Command::new(&own).arg("copied").output().unwrap()), "copied\n");

    let through = shell("say hello you; echo; sh -c 'echo own shell again'");
    assert_eq!(out(&through), "hello you\nown shell again\n", "{through:?}");
    assert_eq!(err(&shell("say other")), "flock: say: denied: no rule allows these arguments\n");
}

#[test]
fn scripts_their_interpreters_and_named_programs_can_be_started() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/usr/bin/env sh\n/bin/true && echo true; /bin/ls / >&2\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let direct = vec![PathBuf::from("/bin/true"), PathBuf::from("/not/there")];
    let lab = lab_with(Rules { direct, ..rules() }, |_, _| Ok(Answer::Pending));
    let done = lab.confined(&[script.to_str().unwrap()]);
    assert_eq!(out(&done), "true\n", "{done:?}");
    assert!(err(&done).contains("Permission denied"), "{done:?}");
    let gone = lab.confined(&["/not/there"]);
    assert_eq!(gone.status.code(), Some(127), "{gone:?}");
    assert!(err(&gone).contains("start the command /not/there"), "{gone:?}");
}

/// The manual says what the rules are not. When this fails, it may promise more.
#[test]
fn what_maps_code_itself_gets_around_the_rules_as_it_is_said() {
    let files = flock::agent::tools::program::files(Path::new("/bin/sh")).unwrap();
    let loader = files.iter().find(|path| path.to_string_lossy().contains("/ld-")).unwrap();
    let script = format!("{} /bin/echo around", loader.display());
    assert_eq!(out(&lab().confined(&["/bin/sh", "-c", &script])), "around\n");
}
