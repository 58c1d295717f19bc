//! A session with real commands: good ones, stubborn ones, and such as die.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::*;

/// Answers each task with its text in upper case; the text may ask for worse.
const SERVANT: &str = r#"
import json, os, signal, sys, threading, time
out = threading.Lock()
def say(**line):
    with out:
        print(json.dumps(line), flush=True)
def work(task):
    text, id = task["text"], task["id"]
    if text == "die": os._exit(3)
    elif text == "closed": os.close(1); time.sleep(60)
    elif text == "stubborn": time.sleep(60)
    elif text.startswith("sleep"): time.sleep(float(text[5:])); say(id=id, output="slept")
    elif text == "long": say(id=id, output="x" * 1000)
    elif text == "huge":
        with out:
            sys.stdout.write(json.dumps({"id": id})[:-1] + ', "output": "')
            for _ in range(300): sys.stdout.write("x" * 100000)
            sys.stdout.write('"}\n'); sys.stdout.flush()
    elif text == "noise":
        print("just a line"); print('{"id": "nobody", "output": ""}'); print("[" * 1000); sys.stdout.flush()
        say(id=id, output="after noise")
    elif text == "pid": say(id=id, output=str(os.getpid()))
    elif text == "environ": say(id=id, output=str(sorted(n for n in os.environ if n.startswith(("NATS_", "FLOCK_TASK", "TASK_")))))
    else: say(id=id, output=text.upper())
for line in sys.stdin:
    task = json.loads(line)
    if "cancel" in task: say(id=task["cancel"], output="given up") if task["cancel"].startswith("polite") else None
    else: threading.Thread(target=work, args=(task,), daemon=True).start()
"#;

struct Scene {
    session: Session,
    keeper: JoinHandle<io::Result<()>>,
    stop: watch::Sender<bool>,
    dir: tempfile::TempDir,
}

fn scene(command: &[&str]) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let (stop, stopped) = watch::channel(false);
    let (session, keeper) = Session::new(Settings::of(command), stopped);
    let home = dir.path().to_owned();
    let keeper = tokio::spawn(async move { keeper.run(&home).await });
    Scene { session, keeper, stop, dir }
}

impl Scene {
    async fn ask(&self, id: &str, text: &str, limit: u64) -> Outcome {
        let (_cancel, cancelled) = watch::channel(false);
        let limit = Duration::from_millis(limit);
        let bounds = Bounds::new(limit, None::<Timestamp>, cancelled, self.stop.subscribe());
        let (id, none) = (TaskId::parse(id).unwrap(), BTreeMap::new());
        let folder = Path::new("/");
        let request =
            Request { id: &id, text, attempt: 1, deadline: None, folder, environment: &none };
        self.session.run(&request, bounds).await
    }

    async fn output(&self, text: &str) -> String {
        let outcome = self.ask("t", text, 9000).await;
        assert_eq!(outcome.end, End::Answered { failed: false, reason: None }, "{text}");
        String::from_utf8(outcome.output).unwrap()
    }

    async fn end(self) -> io::Result<()> {
        let _ = self.stop.send(true);
        self.keeper.await.unwrap()
    }
}

fn servant() -> Scene {
    scene(&["python3", "-c", SERVANT])
}

fn alive(pid: &str) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

#[tokio::test]
async fn one_process_answers_many_tasks_in_any_order() {
    let scene = servant();
    let (slow, quick) =
        tokio::join!(scene.ask("a", "sleep0.3", 9000), scene.ask("b", "grün\n", 9000));
    assert_eq!(
        (slow.output.as_slice(), quick.output.as_slice()),
        (&b"slept"[..], "GRÜN\n".as_bytes())
    );
    assert!(quick.usage.is_none());
    let first = scene.output("pid").await;
    assert_eq!(scene.output("noise").await, "after noise");
    assert_eq!(scene.output("environ").await, "[]");
    assert_eq!(scene.output("pid").await, first, "it is still the same");
    assert!(alive(&first));
    let begun = Instant::now();
    scene.end().await.unwrap();
    assert!(
        !alive(&first) && begun.elapsed() < Duration::from_secs(4),
        "closing its input was enough"
    );
}

#[tokio::test]
async fn an_output_beyond_the_limit_fails_its_task_alone() {
    let scene = servant();
    let first = scene.output("pid").await;
    for text in ["long", "huge"] {
        let outcome = scene.ask("t", text, 20_000).await;
        let End::Answered { failed: true, reason: Some(why) } = &outcome.end else {
            panic!("{outcome:?}")
        };
        assert!(why.contains("limit") || why.contains("longer"), "{why}");
        assert!(outcome.output.len() <= 100);
    }
    assert_eq!(scene.output("pid").await, first);
    scene.end().await.unwrap();
}

#[tokio::test]
async fn a_command_that_dies_loses_its_tasks_and_is_started_again() {
    let scene = servant();
    let first = scene.output("pid").await;
    for text in ["die", "closed"] {
        let (other, bad) =
            tokio::join!(scene.ask("other", "sleep5", 9000), scene.ask("bad", text, 9000));
        for outcome in [other, bad] {
            assert!(matches!(outcome.end, End::Lost(_)), "{text}: {outcome:?}");
        }
    }
    assert_ne!(scene.output("pid").await, first);
    scene.end().await.unwrap();
}

#[tokio::test]
async fn a_task_out_of_time_is_told_and_who_does_not_listen_is_killed() {
    let scene = servant();
    let first = scene.output("pid").await;
    let polite = scene.ask("polite", "stubborn", 300).await;
    assert_eq!(polite.end, End::Cut(Cut::TimedOut(Duration::from_millis(300))));
    assert_eq!(polite.output, b"given up");
    assert_eq!(scene.output("pid").await, first, "it was told in time");
    let begun = Instant::now();
    let (rude, other) =
        tokio::join!(scene.ask("rude", "stubborn", 300), scene.ask("other", "sleep30", 60_000));
    assert_eq!(rude.end, End::Cut(Cut::TimedOut(Duration::from_millis(300))));
    assert!(matches!(other.end, End::Lost(_)), "the other goes back: {other:?}");
    assert!((5..15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(!alive(&first));
    assert_ne!(scene.output("pid").await, first);
    scene.end().await.unwrap();
}

#[tokio::test]
async fn a_stop_closes_the_input_and_tasks_that_are_not_done_go_back() {
    let scene = servant();
    let pid = scene.output("pid").await;
    let session = scene.session.clone();
    let stop = scene.stop.clone();
    let Scene { keeper, dir, .. } = scene;
    let ask = Scene { session, keeper: tokio::spawn(async { Ok(()) }), stop: stop.clone(), dir };
    let later = async {
        sleep(Duration::from_millis(200)).await;
        stop.send(true).unwrap();
    };
    let (slow, ()) = tokio::join!(ask.ask("slow", "stubborn", 60_000), later);
    assert_eq!(slow.end, End::Cut(Cut::Stopped));
    keeper.await.unwrap().unwrap();
    assert!(!alive(&pid));
}

#[tokio::test]
async fn who_ignores_everything_is_killed_in_the_end() {
    let deaf = "import signal, time, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w')\n\
                while True: time.sleep(1)";
    let scene = scene(&["python3", "-c", deaf]);
    let begun = Instant::now();
    while !scene.dir.path().join("deaf").exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not begin");
        sleep(Duration::from_millis(20)).await;
    }
    let begun = Instant::now();
    scene.end().await.unwrap();
    assert!((6..20).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_command_that_cannot_be_started_ends_the_session() {
    let scene = scene(&["/nonexistent"]);
    let error = scene.keeper.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("start the command /nonexistent"), "{error}");
    // And one that ends at once is tried again, with growing pauses.
    let begun = Instant::now();
    let scene = self::scene(&["/bin/sh", "-c", "echo x >> starts; exit 1"]);
    let file = scene.dir.path().join("starts");
    let starts = || std::fs::read_to_string(&file).unwrap_or_default().lines().count();
    while starts() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} starts", starts());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(1500), "at 0, 0.5 and 1.5 seconds");
    scene.end().await.unwrap();
}

#[tokio::test]
async fn a_task_that_comes_while_there_is_no_command_waits_for_it() {
    let scene = servant();
    scene.output("pid").await;
    assert!(matches!(scene.ask("bad", "die", 9000).await.end, End::Lost(_)));
    let early = scene.ask("early", "stubborn", 100).await;
    assert_eq!(
        early.end,
        End::Cut(Cut::TimedOut(Duration::from_millis(100))),
        "not told to anybody"
    );
    assert_eq!(scene.output("soon").await, "SOON");
    scene.end().await.unwrap();
}

#[tokio::test]
async fn lines_are_bounded() {
    let mut reader = tokio::io::BufReader::with_capacity(3, &b"abcde\nabcdef\n\nlast"[..]);
    let mut lines = Vec::new();
    while let Some((line, whole)) = next(&mut reader, 5).await.unwrap() {
        lines.push((String::from_utf8(line).unwrap(), whole));
    }
    let line = |text: &str, whole| (text.to_owned(), whole);
    assert_eq!(
        lines,
        [line("abcde", true), line("abcde", false), line("", true), line("last", true)]
    );
}
