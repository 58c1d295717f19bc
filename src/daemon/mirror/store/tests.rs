//! A flockd that ends at any step, and operators who do what they like with the files.

use super::*;
use std::os::unix::fs::symlink;

/// A directory of logs, and a journal of numbered lines of one agent.
struct Bench {
    dir: tempfile::TempDir,
    file_max: u64,
}

fn id() -> AgentId {
    AgentId::parse("a").unwrap()
}

fn place(number: usize) -> Place {
    Place::parse(&format!("s=a;i={number:x};b=b;m={number:x};t={number:x};x=c")).unwrap()
}

fn line(number: usize) -> String {
    format!("line {number}\n")
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        Self { dir, file_max: 100 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(name)
    }

    fn open(&self) -> Store {
        let log = self.path("a.log");
        let make = move |id: &AgentId| match id.as_str() {
            "a" => fs::write(&log, ""),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let state = self.dir.path().join("log.state");
        let mut store = Store::open(&self.path(""), &state, Box::new(make)).unwrap();
        store.file_max = self.file_max;
        store
    }

    /// What a flockd does: opens, begins what is new, and writes `count` lines in one batch.
    fn turn(&self, count: usize) {
        let mut store = self.open();
        for id in store.newcomers(&[id()]) {
            store.begin(&id).unwrap();
            store.save().unwrap();
        }
        let from = store.place().map_or(1, |at| (1..999).find(|n| place(*n).is(&at)).unwrap() + 1);
        let lines = (from..from + count).map(line).collect();
        let last = place(from + count - 1);
        store.take(&BTreeMap::from([(id(), lines)]), Some(&last), &id()).unwrap();
    }

    /// All lines, the oldest file first.
    fn all(&self) -> String {
        let names = ["a.log.3", "a.log.2", "a.log.1", "a.log"];
        names.iter().filter_map(|name| fs::read_to_string(self.path(name)).ok()).collect()
    }

    fn copy(&self) -> Self {
        let other = Self::new();
        for from in [self.dir.path().to_owned(), self.path("")] {
            for entry in fs::read_dir(&from).unwrap().flatten() {
                if entry.path().is_file() {
                    let below = entry.path();
                    let below = below.strip_prefix(self.dir.path()).unwrap();
                    fs::copy(entry.path(), other.dir.path().join(below)).unwrap();
                }
            }
        }
        other
    }

    /// Copies of files have other inodes; the state has to name theirs.
    fn adopt(&self, inode_of: &str) {
        let path = self.dir.path().join("log.state");
        let mut state = read_state(&path).unwrap();
        let inode = inode(&self.path(inode_of)).unwrap();
        state.files.get_mut(&id()).unwrap().inode = inode;
        fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    }
}

fn lines(range: std::ops::RangeInclusive<usize>) -> String {
    range.map(line).collect()
}

#[test]
fn what_is_behind_the_state_is_cut_off_and_comes_again() {
    let bench = Bench::new();
    bench.turn(3);
    assert_eq!(bench.all(), lines(1..=3));
    let before = fs::read(bench.dir.path().join("log.state")).unwrap();
    bench.turn(3);
    // Killed after the lines were written and before the state was: at every byte of them.
    let whole = fs::read(bench.path("a.log")).unwrap();
    for end in lines(1..=3).len()..=whole.len() {
        fs::write(bench.path("a.log"), &whole[..end]).unwrap();
        fs::write(bench.dir.path().join("log.state"), &before).unwrap();
        assert_eq!(bench.open().place().unwrap().cursor(), place(3).cursor());
        assert_eq!(bench.all(), lines(1..=3), "cut at {end}");
        bench.turn(3);
        assert_eq!(bench.all(), lines(1..=6), "cut at {end}");
    }
}

#[test]
fn full_files_are_set_aside_and_some_are_kept() {
    let bench = Bench::new();
    for _ in 0..10 {
        bench.turn(5);
    }
    // 100 bytes hold two batches of 5 lines of 7 or 8.
    let names = ["a.log", "a.log.1", "a.log.2", "a.log.3"];
    let sizes: Vec<u64> =
        names.iter().map(|name| fs::metadata(bench.path(name)).unwrap().len()).collect();
    assert!(sizes.iter().all(|size| (1..=100).contains(size)), "{sizes:?}");
    assert!(!bench.path("a.log.4").exists() && !bench.path("a.log.new").exists());
    let kept = bench.all();
    let first = kept.lines().next().unwrap().strip_prefix("line ").unwrap().parse().unwrap();
    assert_eq!(kept, lines(first..=50));
    assert!((10..=30).contains(&first), "{first}");
}

#[test]
fn a_rotation_that_was_broken_off_is_brought_to_its_end() {
    // Two full files already, and one that the next batch makes full.
    let bench = Bench::new();
    (0..5).for_each(|_| bench.turn(5));
    let before = bench.all();
    let step = |name: &str, inode_of: &str, change: &dyn Fn(&Bench)| {
        let at = bench.copy();
        change(&at);
        at.adopt(inode_of);
        at.open();
        assert_eq!(at.all(), before, "{name}");
        at.turn(5);
        at.turn(5);
        let all = at.all();
        let first = all.lines().next().unwrap().strip_prefix("line ").unwrap().parse().unwrap();
        assert_eq!(all, lines(first..=35), "{name}");
        assert!(!at.path("a.log.new").exists(), "{name}");
    };
    let mv = |at: &Bench, from: &str, to: &str| fs::rename(at.path(from), at.path(to)).unwrap();
    let exchanged = |at: &Bench| {
        mv(at, "a.log", "a.log.new");
        fs::write(at.path("a.log"), "").unwrap();
    };
    step("the new file is made", "a.log", &|at| {
        fs::write(at.path("a.log.new"), "").unwrap();
    });
    step("exchanged", "a.log.new", &exchanged);
    step("room was made in part", "a.log.new", &|at| {
        exchanged(at);
        mv(at, "a.log.2", "a.log.3");
    });
    step("room was made", "a.log.new", &|at| {
        exchanged(at);
        mv(at, "a.log.2", "a.log.3");
        mv(at, "a.log.1", "a.log.2");
    });
    step("set aside, and lines written", "a.log.1", &|at| {
        exchanged(at);
        mv(at, "a.log.2", "a.log.3");
        mv(at, "a.log.1", "a.log.2");
        mv(at, "a.log.new", "a.log.1");
        fs::write(at.path("a.log"), "line 26\nlin").unwrap();
    });
}

#[test]
fn an_operator_may_remove_empty_or_replace_a_log() {
    let bench = Bench::new();
    bench.turn(2);
    fs::remove_file(bench.path("a.log")).unwrap();
    bench.turn(2);
    assert_eq!(bench.all(), lines(3..=4));
    fs::write(bench.path("a.log"), "").unwrap();
    bench.turn(1);
    assert_eq!(bench.all(), lines(5..=5));
    fs::remove_file(bench.path("a.log")).unwrap();
    fs::write(bench.path("other"), "a note").unwrap();
    fs::rename(bench.path("other"), bench.path("a.log")).unwrap();
    bench.turn(1);
    assert_eq!(bench.all(), format!("a note\n{}", line(6)));
}

#[test]
fn nothing_is_written_through_a_link_and_the_others_go_on() {
    let bench = Bench::new();
    bench.turn(1);
    let secret = bench.dir.path().join("secret");
    fs::write(&secret, "x").unwrap();
    fs::remove_file(bench.path("a.log")).unwrap();
    symlink(&secret, bench.path("a.log")).unwrap();
    bench.turn(1);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "x");
}

#[test]
fn without_a_state_the_logs_begin_anew_and_one_that_is_gone_is_forgotten() {
    let bench = Bench::new();
    bench.turn(20);
    bench.turn(5);
    fs::write(bench.dir.path().join("log.state"), "{").unwrap();
    let mut store = bench.open();
    assert!(store.place().is_none());
    assert_eq!(store.newcomers(&[id()]), [id()]);
    store.begin(&id()).unwrap();
    assert_eq!(bench.all(), "");
    let hostile = r#"{"cursor":"--file=/etc/shadow","anchor":null,"files":{}}"#;
    fs::write(bench.dir.path().join("log.state"), hostile).unwrap();
    assert!(bench.open().place().is_none());

    bench.turn(1);
    let state = bench.dir.path().join("log.state");
    let text = fs::read_to_string(&state).unwrap().replace("\"a\"", "\"gone\"");
    fs::write(&state, text).unwrap();
    assert_eq!(bench.open().others(&[]), []);
}

#[test]
fn lines_that_could_not_all_be_written_are_taken_back() {
    let bench = Bench::new();
    bench.turn(1);
    let mut store = bench.open();
    store.path = bench.dir.path().join("missing/log.state");
    let lines_of_two = BTreeMap::from([(id(), line(2))]);
    assert!(store.take(&lines_of_two, Some(&place(2)), &id()).is_err());
    drop(store);
    bench.turn(2);
    assert_eq!(bench.all(), lines(1..=3));
}
