//! SAs of a file, and a directory that is read again by another process.

use std::cell::Cell;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::*;
use crate::control::config::Config;
use crate::control::daemon::flow_entry::Locals;
use crate::control::xfrm::store;

/// SAs that send from 198.18.2.1, and one that receives there.
fn file(spis: &[u32]) -> Arc<StaticXfrm> {
    let sa = |spi: &u32| {
        let [src, dst] = match spi % 2 {
            0 => ["198.18.2.1", "198.18.2.2"],
            _ => ["198.18.2.2", "198.18.2.1"],
        };
        format!(
            "[[xfrm.state]]\nsrc = \"{src}\"\ndst = \"{dst}\"\nproto = \"esp\"\nspi = {spi}\nmode = \"tunnel\"\n\
             aead = {{ name = \"rfc4106(gcm(aes))\", key = \"0x{spi:040x}\", icv = 128 }}\n"
        )
    };
    let text: String = spis.iter().map(sa).collect();
    Config::parse(&text, Path::new("x.toml")).expect("is right").xfrm
}

/// The router's own address.
fn own(address: &str) -> Locals {
    let ipv4 = [(address.parse().expect("an address"), 32)].into();
    Locals { ipv4, ..Locals::default() }
}

struct Lab {
    dir: tempfile::TempDir,
    shared: Shared,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("changes");
        let shared = Shared::default();
        shared.is_enabled.store(true, Relaxed);
        shared.locals.store(Arc::new(own("198.18.2.1")));
        Lab { dir, shared }
    }

    /// Runs a process of its own with the file until it is killed, or ends.
    fn run<T>(&self, spis: &[u32], act: impl FnOnce(&mut Keeper<'_>, &Report) -> T) -> T {
        let store = Store::open(self.dir.path()).expect("opens");
        self.shared.file.store(Some(file(spis)));
        let nobody = || {};
        let mut keeper = Keeper::new(&self.shared, &store, &nobody);
        keeper.follow_file(true);
        let report = self.shared.report.load_full();
        act(&mut keeper, &report)
    }

    fn new_keys(&self, spis: &[u32]) {
        for sa in file(spis).states() {
            store::create(self.dir.path(), &sa.key_id(), "x").expect("makes it");
        }
    }
}

fn taken(report: &Report) -> u64 {
    report.states.outbound[0].sequence().take().expect("a number")
}

#[test]
fn numbers_go_on_above_all_that_were_reserved_unless_the_process_ends() {
    let lab = Lab::new();
    lab.run(&[2], |_, report| {
        assert_eq!(report.states.outbound.len(), 0);
        assert!(report.kernels[0].contains("new-keys"), "{:?}", report.kernels);
    });
    lab.new_keys(&[2]);
    let mut next = 1;
    for _ in 0..3 {
        next = lab.run(&[2], |_, report| {
            assert_eq!([taken(report), taken(report)], [next, next + 1]);
            // Killed.
            next + RANGE[0]
        });
    }
    lab.run(&[2], |keeper, report| {
        assert_eq!(taken(report), next);
        keeper.end();
        let state = &report.states.outbound[0];
        assert!(state.sequence().take().is_err(), "it is not used any more");
    });
    lab.run(&[2], |_, report| assert_eq!(taken(report), next + 1));
}

#[test]
fn more_numbers_are_reserved_before_the_last_is_taken() {
    let lab = Lab::new();
    lab.new_keys(&[2]);
    lab.run(&[2], |keeper, report| {
        for number in 1..=3 * RANGE[0] {
            assert_eq!(taken(report), number);
            if number % (RANGE[0] / 4) == 0 {
                keeper.tick(Instant::now());
            }
        }
        let id = file(&[2]).states()[0].key_id();
        let stored = keeper.store.read(&id).expect("reads").expect("is there");
        assert!(stored.sent > 3 * RANGE[0] && stored.sent < 12 * RANGE[0], "{stored:?}");
    });
}

#[test]
fn what_was_received_is_refused_after_a_restart() {
    let lab = Lab::new();
    let check = |report: &Report, number: u32| {
        let state = report.states.inbound.states().next().expect("an SA");
        state.replay().check(number).is_ok()
    };
    lab.run(&[3], |keeper, report| {
        let state = report.states.inbound.states().next().expect("an SA");
        state.replay().accept(900).expect("is new");
        keeper.tick(Instant::now() + STORE);
        state.replay().accept(901).expect("is new");
    });
    lab.run(&[3], |keeper, report| {
        // 901 came in the last second.
        assert_eq!([880, 900, 901].map(|number| check(report, number)), [false, false, true]);
        let state = report.states.inbound.states().next().expect("an SA");
        state.replay().accept(950).expect("is new");
        keeper.end();
    });
    lab.run(&[3], |_, report| assert!(!check(report, 950) && check(report, 951)));
}

#[test]
fn a_key_of_the_other_end_is_none_to_send_with() {
    let lab = Lab::new();
    lab.new_keys(&[3]);
    lab.run(&[3], |_, report| assert_eq!(report.states.inbound.len(), 1));
    // The addresses have moved.
    lab.shared.locals.store(Arc::new(own("198.18.2.2")));
    lab.run(&[3], |_, report| {
        let [state] = &report.states.outbound[..] else { panic!("it sends") };
        assert!(state.sequence().take().is_err());
        assert!(report.kernels[0].contains("the other end sends"), "{:?}", report.kernels);
    });
}

#[test]
fn people_are_told_of_an_sa_without_numbers() {
    let lab = Lab::new();
    lab.new_keys(&[2]);
    lab.run(&[2], |keeper, report| {
        let id = file(&[2]).states()[0].key_id();
        let stored = keeper.sas.get_mut(&id).expect("an SA");
        stored.record.sent = SEQ_MAX;
        let later = Instant::now() + RETRY;
        // There are some left.
        for number in 1..=RANGE[0] {
            assert!(report.kernels.is_empty() && lab.shared.report.load().kernels.is_empty());
            assert_eq!(taken(report), number);
            if number % (RANGE[0] / 4) == 0 {
                keeper.tick(later);
            }
        }
        let told = lab.shared.report.load_full();
        assert!(told.kernels[0].contains("numbers have been used"), "{:?}", told.kernels);
        assert_eq!(told.states.outbound.len(), 1, "no other SA sends instead");
    });
}

#[test]
fn numbers_are_stored_again_once_that_works() {
    let lab = Lab::new();
    lab.new_keys(&[2]);
    lab.run(&[2], |keeper, report| {
        let id = file(&[2]).states()[0].key_id();
        let aside = lab.dir.path().join("aside");
        let names = fs::read_dir(lab.dir.path()).expect("reads");
        let mut names = names.map(|it| it.expect("one").path());
        let is_key = |path: &PathBuf| path.to_string_lossy().contains("/sa-");
        let name = names.find(is_key).expect("a file");
        // A directory cannot be replaced by a file.
        fs::rename(&name, &aside).expect("renames");
        fs::create_dir(&name).expect("makes it");
        for _ in 0..RANGE[0] / 2 {
            taken(report);
        }
        let start = Instant::now();
        let failing = |keeper: &Keeper<'_>| keeper.sas[&id].failing.is_some();
        for millis in [1000, 1500, 2500] {
            keeper.tick(start + Duration::from_millis(millis));
            assert!(failing(keeper), "also until the next attempt");
            let told = lab.shared.report.load_full();
            assert!(told.kernels[0].contains("cannot be stored"), "{:?}", told.kernels);
        }
        fs::remove_dir(&name).expect("removes it");
        fs::rename(&aside, &name).expect("renames");
        keeper.tick(start + Duration::from_millis(2600));
        assert!(failing(keeper), "it is not tried yet");
        keeper.tick(start + Duration::from_millis(4000));
        assert!(!failing(keeper));
        assert_eq!(lab.shared.report.load().kernels, [""; 0]);
    });
}

#[test]
fn one_write_of_what_was_received_at_a_time() {
    let lab = Lab::new();
    lab.new_keys(&[2]);
    lab.run(&[2, 3, 5, 7], |keeper, report| {
        for state in report.states.inbound.states() {
            state.replay().accept(900).expect("is new");
        }
        let later = Instant::now() + STORE;
        let is_stored = |sa: &&Stored| !sa.is_outbound() && sa.record.received == 900;
        for count in 1..=3 {
            for _ in 0..RANGE[0] * 3 / 4 {
                taken(report);
            }
            assert_eq!(keeper.tick(later), Duration::ZERO);
            assert_eq!(keeper.sas.values().filter(is_stored).count(), count);
            assert!(report.states.outbound[0].sequence().left() > RANGE[0] / LOW);
        }
        assert_eq!(keeper.tick(later), TICK);
    });
}

#[test]
fn a_change_of_keys_or_algorithms_makes_another_sa_whose_numbers_go_on() {
    let lab = Lab::new();
    let with = |algorithms: &str| {
        let text = format!(
            "[[xfrm.state]]\nsrc = \"198.18.2.1\"\ndst = \"198.18.2.2\"\nproto = \"esp\"\nspi = 2\n\
             mode = \"tunnel\"\n{algorithms}\n"
        );
        Config::parse(&text, Path::new("x.toml")).expect("is right").xfrm
    };
    let gcm = |name: &str| {
        with(&format!("aead = {{ name = \"{name}\", key = \"0x{:040x}\", icv = 128 }}", 2))
    };
    let cbc = |auth: &str| {
        with(&format!(
            "enc = {{ name = \"cbc(aes)\", key = \"0x{:032x}\" }}\n\
             auth-trunc = {{ name = \"hmac(sha256)\", key = \"{auth}\", trunc = 128 }}",
            1
        ))
    };
    for [one, other] in
        [[gcm("rfc4543(gcm(aes))"), gcm("rfc4106(gcm(aes))")], [cbc("0x01"), cbc("0x02")]]
    {
        let id = one.states()[0].key_id();
        store::create(lab.dir.path(), &id, "x").expect("makes it");
        lab.run(&[], |keeper, _| {
            let mut follow = |file: &Arc<StaticXfrm>| {
                lab.shared.file.store(Some(Arc::clone(file)));
                keeper.follow_file(true);
                lab.shared.report.load_full()
            };
            let before = follow(&one);
            let number = taken(&before);
            assert_eq!(taken(&follow(&one)), number + 1, "it is the same SA");
            let after = follow(&other);
            assert!(before.states.outbound[0].sequence().take().is_err());
            let [before, after] = [&before, &after].map(|report| report.states.outbound[0].state());
            assert!(!std::ptr::eq(before, after));
            assert_eq!(taken(&lab.shared.report.load()), number + 2);
        });
    }
}

#[test]
fn a_reload_counts_also_when_another_attempt_is_due() {
    let lab = Lab::new();
    lab.new_keys(&[2, 4]);
    lab.run(&[2, 4, 6], |keeper, report| {
        let spis = |report: &Report| {
            let of = report.states.outbound.iter().map(|state| state.state().config().spi);
            of.collect::<Vec<_>>()
        };
        assert_eq!(spis(report), [2, 4]);
        lab.shared.file.store(Some(file(&[4, 2, 6])));
        lab.shared.changes.fetch_add(1, Relaxed);
        let due = keeper.again_at.expect("6 is refused");
        keeper.follow_changes(due);
        assert_eq!(spis(&lab.shared.report.load()), [4, 2]);
    });
}

#[test]
fn the_file_may_change_and_another_sa_of_the_kernel_stops_all() {
    let lab = Lab::new();
    lab.new_keys(&[2, 4]);
    let changed = Cell::new(0);
    let store = Store::open(lab.dir.path()).expect("opens");
    let notify = || changed.set(changed.get() + 1);
    let mut keeper = Keeper::new(&lab.shared, &store, &notify);
    let mut follow = |spis: &[u32]| {
        lab.shared.file.store(Some(file(spis)));
        keeper.follow_file(true);
        keeper.tick(Instant::now());
        lab.shared.report.load_full()
    };
    let one = follow(&[2]);
    assert_eq!(taken(&one), 1);
    let both = follow(&[4, 2]);
    let spis = |report: &Report| {
        let of = report.states.outbound.iter().map(|state| state.state().config().spi);
        of.collect::<Vec<_>>()
    };
    assert_eq!((spis(&both), spis(&follow(&[2, 4]))), (vec![4, 2], vec![2, 4]));
    assert_eq!(taken(&follow(&[2, 4])), 2, "it is the same SA");
    // Until workers have the other ones, they send by this one.
    let four = follow(&[4]);
    assert_eq!((spis(&four), taken(&one)), (vec![4], 3));
    assert_eq!(taken(&follow(&[2])), 4, "none is sent twice");
    lab.shared.conflict.store(Some(Arc::new("the kernel has one".to_owned())));
    let none = follow(&[2]);
    assert_eq!(
        (spis(&none), none.kernels.as_slice()),
        (vec![], &["the kernel has one".to_owned()][..])
    );
    assert!(one.states.outbound[0].sequence().take().is_err());
    lab.shared.conflict.store(None);
    assert_eq!(taken(&follow(&[2])), 5);
    assert!(changed.get() >= 8);
}
