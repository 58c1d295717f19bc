//! What the default access list costs a new file: files made by an agent's user in its directory, and
//! in one beside it without a list.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, seteuid};

use super::stats::Comparison;

/// Files that are timed together.
const AT_ONCE: u32 = 2000;

/// `own` is the agent's directory, which has a default list, and `uid` its user.
pub fn compare(own: &Path, uid: u32, pairs: usize) -> Vec<Comparison> {
    // Beside the shared tree and on its file system.
    let plain = Path::new("/var/lib/flock-figures-plain");
    let (first, second, listed) = (plain.join("a"), plain.join("b"), own.join("files"));
    for folder in [plain, &first, &second] {
        fs::create_dir_all(folder).expect("the plain directory");
        chown(folder, Some(uid), Some(uid)).expect("its owner");
    }
    seteuid(Uid::from_raw(uid)).expect("root");
    fs::create_dir_all(&listed).expect("a directory in the agent's own");
    let control = pairs_of(pairs / 2, &first, &second);
    let real = pairs_of(pairs, &listed, &second);
    fs::remove_dir_all(&listed).expect("it is empty");
    seteuid(Uid::from_raw(0)).expect("root again");
    fs::remove_dir_all(plain).expect("it is root's");
    let name = format!("PF-16 new files with the default list against without, {AT_ONCE} of them");
    vec![
        Comparison::of(&format!("control: without against without, {AT_ONCE} files"), &control),
        Comparison::of(&name, &real),
    ]
}

fn pairs_of(pairs: usize, a: &Path, b: &Path) -> Vec<(Duration, Duration)> {
    let turn = |number: usize| match number % 2 {
        0 => (fill(a), fill(b)),
        _ => {
            let second = fill(b);
            (fill(a), second)
        }
    };
    (0..pairs + 2).map(turn).skip(2).collect()
}

fn fill(folder: &Path) -> Duration {
    let name = |number: u32| folder.join(number.to_string());
    let begun = Instant::now();
    for number in 0..AT_ONCE {
        File::create(name(number)).expect("a file");
    }
    let took = begun.elapsed();
    for number in 0..AT_ONCE {
        fs::remove_file(name(number)).expect("the file");
    }
    took
}
