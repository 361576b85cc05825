//! The systemd units say what systemd understands, and let each daemon do little beyond its work.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::process::run;
use crate::support::{PEERD, secs};

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let folder = crate::support::folder();
    let binaries = Path::new(PEERD).parent().expect("a folder").display().to_string();
    let mut units = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")).expect("systemd/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "service") {
            continue;
        }
        units += 1;
        // `make install` writes the folder of the binaries in the same way.
        let unit = fs::read_to_string(&path).expect("a unit");
        assert!(unit.contains("ExecStart=/usr/local/bin/"), "{}", path.display());
        let copy = folder.path().join(path.file_name().expect("a name"));
        fs::write(&copy, unit.replace("/usr/local/bin", &binaries)).expect("write a unit");
        let output = run(Command::new("systemd-analyze").arg("verify").arg(&copy), secs(30)).expect_success();
        // An unknown key is on standard error alone.
        let about: Vec<String> =
            output.errors().lines().filter(|line| line.contains("peerd test")).map(str::to_string).collect();
        assert!(about.is_empty(), "{about:#?}");
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--no-pager", "--offline=true", "--threshold=20"]).arg(&copy);
        run(&mut security, secs(30)).expect_success();
    }
    assert!(units > 0, "no units");
}
