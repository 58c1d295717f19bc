//! Roots made, checked and repaired in a real directory.

use super::*;
use crate::config::Access;
use crate::host::testing;
use crate::plan::SecretFile;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

fn sample(at: &Path) -> Plan {
    let mut plan = testing::plan("a");
    let key = at.join("key");
    fs::write(&key, "s3cret").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    plan.root = RootPlan {
        dir: at.join("roots/a"),
        dirs: ["usr", "etc/ssl", "etc/secrets", "tmp"].map(PathBuf::from).into(),
        links: vec![("bin".into(), "usr/bin".into())],
        files: BTreeMap::from([
            ("etc/hostname".into(), "a\n".into()),
            ("etc/localtime".into(), String::new()),
        ]),
        secrets: vec![SecretFile { path: "etc/secrets/key".into(), source: key }],
        binds: vec![crate::plan::Bind {
            source: "/opt/model".into(),
            target: "/opt/model".into(),
            access: Access::ReadOnly,
            optional: false,
        }],
    };
    plan
}

fn listing(at: &Path) -> String {
    testing::output(&format!("cd {} && find . -printf '%P %y %m %U %l\\n' | sort", at.display()))
}

#[test]
fn the_skeleton_is_made_as_planned_and_then_left_alone() {
    let Some(temp) = testing::root_dir("root_made") else { return };
    let plan = sample(temp.path());
    assert!(check(&plan).unwrap_err().to_string().contains("roots/a does not exist"));
    assert_eq!(ensure(&plan).unwrap().len(), 9);
    let expected = [
        " d 755 0 ",
        "bin l 777 0 usr/bin",
        "etc d 755 0 ",
        "etc/hostname f 444 0 ",
        "etc/localtime f 444 0 ",
        "etc/secrets d 755 0 ",
        "etc/secrets/key f 400 65537 ",
        "etc/ssl d 755 0 ",
        "tmp d 755 0 ",
        "usr d 755 0 ",
    ];
    assert_eq!(listing(&plan.root.dir).lines().collect::<Vec<_>>(), expected);
    let ctime = |path: &str| fs::metadata(plan.root.dir.join(path)).unwrap().ctime_nsec();
    let stamps = || ["", "etc", "etc/hostname", "etc/secrets/key"].map(ctime);
    let before = stamps();
    assert_eq!(ensure(&plan).unwrap(), Vec::<String>::new());
    check(&plan).unwrap();
    assert_eq!(stamps(), before);
    assert_eq!(fs::metadata(temp.path().join("roots")).unwrap().mode() & 0o777, 0o711);
}

#[test]
fn every_difference_is_named_and_repaired() {
    let Some(temp) = testing::root_dir("root_repair") else { return };
    let plan = sample(temp.path());
    ensure(&plan).unwrap();
    let sound = listing(&plan.root.dir);
    let changes = [
        ("echo b > etc/hostname", "etc/hostname: its content"),
        ("chmod 666 etc/hostname", "etc/hostname: its content or mode"),
        ("rm etc/hostname; ln -s /etc/shadow etc/hostname", "is a symbolic link, should be a file"),
        ("rm etc/hostname; mkdir etc/hostname", "is a directory, should be a file"),
        (
            "mv etc /run/flock-test-x; ln -s /run/flock-test-x etc",
            "is a symbolic link, should be a",
        ),
        ("rm etc/hostname; mkfifo etc/hostname", "is a socket, pipe or device"),
        ("rm etc/hostname; mkdir -p etc/hostname/x/y", "hostname/x: no plan asks for it"),
        ("ln -sfn /tmp bin", "bin: should lead to usr/bin"),
        ("chmod 777 etc", "etc: its mode is 0777, should be 0755"),
        ("chown 65536 etc/secrets/key", "etc/secrets/key: it belongs to"),
        ("chmod 444 etc/secrets/key", "etc/secrets/key: its content or mode"),
        ("echo old > etc/secrets/key", "etc/secrets/key: its content"),
        ("ln etc/hostname ../h; true", "2 names"),
        ("mkdir -p x/y; echo z > x/y/z; ln -s /etc x/e", "x: no plan asks for it"),
        ("mkfifo etc/pipe", "etc/pipe: no plan asks for it"),
        ("rm -r usr", "usr does not exist"),
    ];
    for (command, why) in changes {
        testing::sh(&format!("cd {} && {command}", plan.root.dir.display()));
        let error = check(&plan).unwrap_err().to_string();
        assert!(error.contains(why), "{command}: {error}");
        assert!(!ensure(&plan).unwrap().is_empty(), "{command}");
        assert_eq!(listing(&plan.root.dir), sound, "{command}");
        check(&plan).unwrap();
        testing::sh("rm -rf /run/flock-test-x");
    }
    assert!(fs::symlink_metadata("/etc/shadow").unwrap().is_file());
}

#[test]
fn a_directory_that_somebody_took_over_is_refused_and_left_alone() {
    let Some(temp) = testing::root_dir("root_taken_over") else { return };
    let plan = sample(temp.path());
    ensure(&plan).unwrap();
    chown(plan.root.dir.join("etc"), Some(65_537), None).unwrap();
    let before = listing(&plan.root.dir);
    for result in [check(&plan), ensure(&plan).map(drop)] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("roots/a/etc: it belongs to 65537:root"), "{error}");
    }
    assert_eq!(listing(&plan.root.dir), before);
}

#[test]
fn what_pid_1_made_to_mount_on_stays() {
    let Some(temp) = testing::root_dir("root_mount_points") else { return };
    let plan = sample(temp.path());
    ensure(&plan).unwrap();
    fs::create_dir_all(plan.root.dir.join("opt/model")).unwrap();
    fs::create_dir_all(plan.root.dir.join("opt/other")).unwrap();
    let changed = ensure(&plan).unwrap();
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert!(plan.root.dir.join("opt/model").exists() && changed[0].contains("opt/other"));
}

#[test]
fn a_secret_follows_its_source_and_a_bad_source_is_refused() {
    let Some(temp) = testing::root_dir("root_secret") else { return };
    let plan = sample(temp.path());
    ensure(&plan).unwrap();
    let (source, copy) = (temp.path().join("key"), plan.root.dir.join("etc/secrets/key"));
    fs::write(&source, "rotated").unwrap();
    assert!(check(&plan).is_err());
    ensure(&plan).unwrap();
    assert_eq!(fs::read_to_string(&copy).unwrap(), "rotated");
    let reads = |uid| testing::as_user(uid, "4001", &format!("cat {}", copy.display()));
    assert!(reads(65_537) && !reads(65_538));
    fs::set_permissions(&source, fs::Permissions::from_mode(0o644)).unwrap();
    let error = ensure(&plan).unwrap_err().to_string();
    assert!(error.starts_with("the secret of agent a:") && error.contains("chmod o-r"), "{error}");
    fs::remove_file(&source).unwrap();
    assert!(ensure(&plan).unwrap_err().to_string().contains("No such file"));
    assert_eq!(fs::read_to_string(&copy).unwrap(), "rotated");
}

#[test]
fn a_path_in_a_plan_cannot_lead_out() {
    let Some(temp) = testing::root_dir("root_paths") else { return };
    for path in ["../x", "/etc/x", "etc/../../x"] {
        let mut plan = sample(temp.path());
        plan.root.files.insert(path.into(), "bad".into());
        assert!(ensure(&plan).is_err(), "{path}");
        assert!(!temp.path().join("roots/x").exists() && !Path::new("/etc/x").exists());
    }
}

#[test]
fn removal_is_whole_and_follows_nothing() {
    let Some(temp) = testing::root_dir("root_remove") else { return };
    let plan = sample(temp.path());
    ensure(&plan).unwrap();
    let kept = temp.path().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("f"), "x").unwrap();
    symlink(&kept, plan.root.dir.join("etc/away")).unwrap();
    remove_at(&plan.root.dir).unwrap();
    remove_at(&plan.root.dir).unwrap();
    assert!(!plan.root.dir.exists() && kept.join("f").exists());
    // A skeleton whose place somebody took is left alone.
    symlink(&kept, temp.path().join("roots2")).unwrap();
    assert!(remove_at(&temp.path().join("roots2/f")).is_err());
    chown(temp.path().join("roots"), Some(65_537), None).unwrap();
    assert!(remove_at(&plan.root.dir).is_err());
    assert!(kept.join("f").exists());
}
