//! The failing disk itself does what it says.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;

use crate::support::disk::{Call, Disk, EIO, ENOSPC, Fault, Leaves, Moment, Rule};
use crate::support::{folder, secs};

#[test]
fn what_was_not_synced_goes_with_the_power() {
    let folder = folder();
    let disk = Disk::mount(&folder.path().join("disk"));
    let at = |name: &str| disk.path().join(name);
    fs::create_dir(at("d")).unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    for (name, synced, named) in [("d/both", true, true), ("d/data", false, true), ("d/late", true, false)] {
        let mut file = File::create(at(name)).unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        if synced {
            file.sync_data().unwrap();
        }
        if named {
            File::open(at("d")).unwrap().sync_all().unwrap();
        }
    }
    fs::rename(at("d/both"), at("d/renamed")).unwrap();
    let file = File::options().write(true).open(at("d/renamed")).unwrap();
    file.write_all_at(&[9; 5_000], 0).unwrap();
    file.set_len(6_000).unwrap();
    drop(file);
    disk.power_off();
    assert!(fs::read(at("d/renamed")).is_err());
    disk.power_on(Leaves::Nothing);
    assert_eq!(fs::read(at("d/both")).unwrap(), [7; 10_000], "the rename and what came after it");
    assert_eq!(fs::read(at("d/data")).unwrap(), [0; 0], "a name without its bytes");
    let names: Vec<_> = fs::read_dir(at("d")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["both", "data"]);
}

#[test]
fn a_cut_that_leaves_a_part_leaves_whole_pages_of_it() {
    let folder = folder();
    let disk = Disk::mount(&folder.path().join("disk"));
    let path = disk.path().join("f");
    let file = File::create(&path).unwrap();
    file.write_all_at(&[1; 64 << 10], 0).unwrap();
    file.sync_all().unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    let (mut old, mut new) = (0, 0);
    for seed in 0..8 {
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[1; 64 << 10], 0).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(&[2; 64 << 10], 0).unwrap();
        drop(file);
        disk.power_off();
        disk.power_on(Leaves::Some(seed));
        for page in fs::read(&path).unwrap().chunks(4096) {
            assert!(page.iter().all(|byte| *byte == page[0]), "a page in two halves, seed {seed}");
            *if page[0] == 1 { &mut old } else { &mut new } += 1;
        }
    }
    assert!(old > 16 && new > 16, "{old} old and {new} new pages");
}

#[test]
fn the_call_that_is_to_fail_fails_and_no_other() {
    let folder = folder();
    let disk = Disk::mount(&folder.path().join("disk"));
    let mut file = File::create(disk.path().join("victim")).unwrap();
    let mut other = File::create(disk.path().join("other")).unwrap();
    disk.order(Rule::nth(Call::Write, "victim", 1, ENOSPC));
    disk.order(Rule::nth(Call::Sync, "victim", 0, EIO));
    file.write_all(b"first").unwrap();
    other.write_all(b"first").unwrap();
    assert_eq!(file.write_all(b"second").unwrap_err().kind(), ErrorKind::StorageFull);
    file.write_all(b"third").unwrap();
    other.sync_all().unwrap();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    file.sync_data().unwrap();
    let left = fs::read(disk.path().join("victim")).unwrap();
    assert!(left.iter().all(|byte| *byte == 0), "what a failed sync could not write is gone");
    assert_eq!(disk.struck(), 2);
    disk.heal();
    disk.order(Rule::nth(Call::Write, "victim", 0, Fault::Short));
    assert_eq!(file.write(b"12345678").unwrap(), 4);
    disk.heal();

    disk.order(Rule::nth(Call::Sync, "other", 0, Fault::Stall));
    let stalled = std::thread::spawn(move || other.sync_all());
    crate::support::wait_until(secs(10), "the sync to stall", || disk.struck() == 1 + 2 + 1);
    assert!(!stalled.is_finished());
    file.write_all(b"others go on").unwrap();
    disk.heal();
    stalled.join().unwrap().unwrap();
}

#[test]
fn the_power_goes_in_the_middle_of_a_write() {
    let folder = folder();
    let disk = Disk::mount(&folder.path().join("disk"));
    let path = disk.path().join("f");
    let file = File::create(&path).unwrap();
    disk.cut_at(Moment::Byte(5_000));
    let writer = std::thread::spawn(move || {
        (0..10).map(|n| file.write_all_at(&[n + 1; 1_000], u64::from(n) * 1_000)).filter(Result::is_ok).count()
    });
    assert!(disk.wait_cut(secs(10)));
    assert!(!writer.is_finished(), "what is under way is not answered");
    disk.power_off();
    assert_eq!(writer.join().unwrap(), 5);
    disk.power_on(Leaves::Everything);
    assert_eq!(fs::read(&path).unwrap().len(), 5_000);
    assert_eq!(disk.traffic().written_bytes, 6_000);
}
