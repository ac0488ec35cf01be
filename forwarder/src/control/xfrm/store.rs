//! Sequence numbers and replay windows of SAs with static keys, on disk: what the kernel's counters are for the SAs that
//! the kernel has.
//!
//! A directory has one file for each key, named by a part of the key's SHA-256. It says below which number all may have
//! been sent, up to which number packets have been received, and what IVs are made from: with one seed for all times IVs
//! differ as sequence numbers do ([`crate::ipsec::IvSeed`]). A file is replaced as a whole, and is on the disk before
//! the numbers that it reserves are used.
//!
//! Only [`create`] makes a file for sending that was not there: a key whose file is lost may have been used, and is
//! refused until somebody says that it is new.
//!
//! Left out: which numbers are reserved, and when. A directory that is put back from a copy has numbers that were used
//! since: nothing here can tell.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Uid, geteuid};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::control::process::runtime_dir::name_of;
use crate::ipsec::Keys;

/// The default directory.
pub const DEFAULT: &str = "/var/lib/ferroute";
/// Set by systemd for a service with StateDirectory= (systemd.exec(5)).
const ENVIRONMENT: &str = "STATE_DIRECTORY";
/// First line of a file: what it is, and the version of its form.
const HEAD: &str = "ferroute-sa 1";
/// [`Record::sent`] of a key by which the other end sends: it is never one to send with here, even if the addresses move.
pub const NEVER_SENT: u64 = u64::MAX;
/// Longest file, octets.
const FILE_MAX: u64 = 4096;
/// Octets of the digest of a key that name its file.
const NAME_LEN: usize = 16;
/// Length of the seed of IVs, octets.
pub const SEED_LEN: usize = 16;
/// Held by the process that uses the directory.
const LOCK: &str = "lock";
/// Permissions of group and others.
const OTHERS: u32 = 0o077;

/// Which key: the name of its file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(String);

impl KeyId {
    /// That of the keys of an SA.
    pub fn of(keys: &Keys) -> KeyId {
        KeyId(format!("sa-{}", hex(&keys.digest()[..NAME_LEN])))
    }
}

/// What is stored for a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// What IVs are made from.
    pub seed: Zeroizing<[u8; SEED_LEN]>,
    /// This number, and all below it, may have been sent; [`NEVER_SENT`]: all, by others.
    pub sent: u64,
    /// Up to this number packets have been received.
    pub received: u64,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Record { sent, received, .. } = self;
        f.debug_struct("Record").field("sent", sent).field("received", received).finish()
    }
}

impl Record {
    /// Of a key that was never used.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn new() -> io::Result<Record> {
        let mut seed = Zeroizing::new([0; SEED_LEN]);
        SystemRandom::new()
            .fill(&mut seed[..])
            .map_err(|_| io::Error::other("no random numbers for IVs"))?;
        Ok(Record { seed, sent: 0, received: 0 })
    }

    /// `about`: the SA, for people who look into the file.
    fn text(&self, about: &str) -> Zeroizing<String> {
        let Record { seed, sent, received } = self;
        let seed = Zeroizing::new(hex(&seed[..]));
        let about: String = about.chars().filter(|c| !c.is_control()).collect();
        let mut text = Zeroizing::new(format!(
            "{HEAD}\n# {about}\nsent {sent}\nreceived {received}\nseed {}\n",
            &*seed
        ));
        let sum = sum(&text);
        *text += &format!("sum {sum}\n");
        text
    }

    /// `None`: the text is not one of [`text`](Self::text).
    fn parse(text: &str) -> Option<Record> {
        let (before, after) = text.split_at(text.rfind("sum ")?);
        if after != format!("sum {}\n", sum(before)) {
            return None;
        }
        let mut lines = before.lines();
        if lines.next() != Some(HEAD) {
            return None;
        }
        let value =
            |name: &str| before.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let number = |name| value(name)?.parse().ok();
        let digits = value("seed")?.as_bytes();
        let mut seed = Zeroizing::new([0; SEED_LEN]);
        if digits.len() != 2 * SEED_LEN {
            return None;
        }
        for (octet, pair) in seed.iter_mut().zip(digits.chunks_exact(2)) {
            *octet = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Record { seed, sent: number("sent")?, received: number("received")? })
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Tells a file that was damaged.
fn sum(text: &str) -> String {
    hex(&digest(&SHA256, text.as_bytes()).as_ref()[..NAME_LEN])
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It does not exist and cannot be created.
    #[error(
        "state directory {}: cannot create it: {error}; create it (install -d -m 0700 -o {} {}), let systemd do so \
         (StateDirectory=ferroute), or name another as state_dir in the [run] section",
        path.display(), name_of(geteuid()), path.display()
    )]
    Create {
        /// The directory.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// It cannot be used.
    #[error("state directory {}: {message}", path.display())]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

/// The path according to the environment: the first directory that systemd created for the service, otherwise [`DEFAULT`].
pub fn default_path() -> PathBuf {
    let named = std::env::var_os(ENVIRONMENT);
    let first = named.as_ref().and_then(|value| std::env::split_paths(value).next());
    first.filter(|path| path.is_absolute()).unwrap_or_else(|| DEFAULT.into())
}

/// Creates the directory with mode 0700 if it does not exist, and checks that it is the user's alone.
///
/// # Errors
/// [`StoreError`].
pub fn prepare(path: &Path) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(_) if path.symlink_metadata().is_ok() => {}
        Err(error) => return Err(StoreError::Create { path: path.to_owned(), error }),
    }
    check(path, Some(geteuid()))
}

/// Checks that a directory is that of a user alone; `None`: of its owner.
///
/// # Errors
/// [`StoreError`].
pub fn check(path: &Path, user: Option<Uid>) -> Result<(), StoreError> {
    let unfit = |message| StoreError::Unfit { path: path.to_owned(), message };
    let meta = path.symlink_metadata().map_err(|error| unfit(error.to_string()))?;
    if !meta.is_dir() {
        return Err(unfit("it is a symbolic link or not a directory".to_owned()));
    }
    let owner = meta.uid();
    if let Some(user) = user.filter(|user| user.as_raw() != owner) {
        let owner = name_of(owner.into());
        let user = name_of(user);
        return Err(unfit(format!(
            "it belongs to user {owner}, and this is {user}; run this as {owner} (runuser -u {owner} -- …), or name another \
             directory as state_dir in the [run] section"
        )));
    }
    if meta.mode() & OTHERS != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(unfit(format!(
            "its mode {mode:04o} lets users other than its owner in, and what IVs are made from is in it; run `chmod 0700` on it"
        )));
    }
    Ok(())
}

/// A directory that only this process uses.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Takes a directory, which [`prepare`] has checked.
    ///
    /// # Errors
    /// [`StoreError`]: it cannot be written, or another process has it.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let unfit = |message| StoreError::Unfit { path: path.to_owned(), message };
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path.join(LOCK))
            .map_err(|error| unfit(format!("cannot open the file `{LOCK}` in it: {error}")))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            unfit(match errno {
                nix::errno::Errno::EWOULDBLOCK => {
                    "another process uses it: each daemon needs a directory and keys of its own"
                        .to_owned()
                }
                errno => format!("cannot lock it: {errno}"),
            })
        })?;
        remove_unfinished(path);
        Ok(Store { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is stored for a key. `None`: nothing.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged (InvalidData).
    pub fn read(&self, id: &KeyId) -> io::Result<Option<Record>> {
        read(&self.path, id)
    }

    /// Stores it. When this returns, it is on the disk.
    ///
    /// # Errors
    /// When it may not be.
    pub fn write(&self, id: &KeyId, record: &Record, about: &str) -> io::Result<()> {
        let made = write_new(&self.path, id, record, about)?;
        fs::rename(made, self.path.join(&id.0))?;
        sync(&self.path)
    }
}

/// What is stored in a directory for a key. The directory need not be locked.
///
/// # Errors
/// As [`Store::read`].
pub fn read(directory: &Path, id: &KeyId) -> io::Result<Option<Record>> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(directory.join(&id.0));
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = Zeroizing::new(String::with_capacity(FILE_MAX as usize + 1));
    file.take(FILE_MAX + 1).read_to_string(&mut text)?;
    let damaged = || {
        let path = directory.join(&id.0);
        io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))
    };
    Record::parse(&text).map(Some).ok_or_else(damaged)
}

/// Makes the file of a key that was never used. `false`: there is one, which stays. A daemon may be using the directory.
///
/// # Errors
/// When it cannot be made.
pub fn create(directory: &Path, id: &KeyId, about: &str) -> io::Result<bool> {
    let made = write_new(directory, id, &Record::new()?, about)?;
    // Not a rename, which would replace one that has numbers.
    let linked = fs::hard_link(&made, directory.join(&id.0));
    fs::remove_file(&made)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        linked => linked?,
    }
    sync(directory)?;
    Ok(true)
}

/// Writes a new file, which is to become that of the key; returns its name.
fn write_new(directory: &Path, id: &KeyId, record: &Record, about: &str) -> io::Result<PathBuf> {
    // Of this process, so that two do not write the same.
    let path = directory.join(format!("{}.{}", id.0, std::process::id()));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)?;
    file.write_all(record.text(about).as_bytes())?;
    file.sync_all()?;
    Ok(path)
}

/// Removes the files that [`write_new`] made in processes which have ended before they were those of keys: they have seeds.
/// Whether that works makes no difference to those of keys.
fn remove_unfinished(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let parts = name.to_str().and_then(|name| name.strip_prefix("sa-")?.split_once('.'));
        let pid = parts.and_then(|(_, pid)| pid.parse::<u32>().ok());
        // `create` of another process may be at work.
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The names in the directory are on the disk, too.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::ipsec::{Aead, Auth, Cipher, EspKeys, Secret};

    fn secret(octet: u8) -> Secret {
        Secret::new(vec![octet; 20])
    }

    fn gcm(octet: u8) -> Keys {
        Keys::Esp(EspKeys::Combined(Aead::AesGcm, secret(octet)))
    }

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).expect("changes");
        dir
    }

    #[test]
    fn what_is_written_is_read_and_replaced() {
        let dir = directory();
        let store = Store::open(dir.path()).expect("opens");
        let id = KeyId::of(&gcm(1));
        assert_eq!(store.read(&id).expect("reads"), None);
        let mut record = Record::new().expect("random numbers");
        for sent in [7, u64::MAX] {
            (record.sent, record.received) = (sent, 9);
            store.write(&id, &record, "spi 0x1\nsent 3").expect("writes");
            assert_eq!(store.read(&id).expect("reads"), Some(record.clone()));
        }
        let names: Vec<_> = fs::read_dir(dir.path())
            .expect("reads")
            .map(|it| it.expect("one").file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let meta = fs::metadata(dir.path().join(&id.0)).expect("is there");
        assert_eq!(meta.mode() & 0o777, 0o600);
        assert!(!format!("{record:?}").contains(&hex(&record.seed[..])));
        assert_ne!(record.seed, Record::new().expect("random numbers").seed);
    }

    #[test]
    fn a_file_that_was_changed_or_cut_is_no_file_without_numbers() {
        let dir = directory();
        let store = Store::open(dir.path()).expect("opens");
        let id = KeyId::of(&gcm(1));
        let record = Record { sent: 1 << 20, ..Record::new().expect("random numbers") };
        store.write(&id, &record, "x").expect("writes");
        let path = dir.path().join(&id.0);
        let text = fs::read_to_string(&path).expect("reads");
        for at in 0..text.len() {
            let mut octets = text.clone().into_bytes();
            octets[at] ^= 1;
            for wrong in [&octets[..], &text.as_bytes()[..at]] {
                fs::write(&path, wrong).expect("writes");
                assert!(store.read(&id).is_err(), "{at}");
            }
        }
        fs::write(&path, vec![b'x'; 1 << 16]).expect("writes");
        assert_eq!(store.read(&id).expect_err("is damaged").kind(), io::ErrorKind::InvalidData);
        fs::remove_file(&path).expect("removes");
        symlink("/dev/zero", &path).expect("links");
        assert!(store.read(&id).is_err(), "a link is not followed");
    }

    #[test]
    fn a_key_is_new_once() {
        let dir = directory();
        let store = Store::open(dir.path()).expect("opens");
        let id = KeyId::of(&gcm(1));
        assert!(create(dir.path(), &id, "x").expect("makes it"));
        let record = Record { sent: 5, ..store.read(&id).expect("reads").expect("is there") };
        store.write(&id, &record, "x").expect("writes");
        assert!(!create(dir.path(), &id, "x").expect("is there"));
        assert_eq!(store.read(&id).expect("reads").expect("is there").sent, 5);
        assert!(create(dir.path(), &KeyId::of(&gcm(2)), "x").expect("is another"));
    }

    #[test]
    fn what_dead_processes_did_not_finish_is_removed() {
        let dir = directory();
        let id = KeyId::of(&gcm(1));
        create(dir.path(), &id, "x").expect("makes it");
        // Greater than any process id (PID_MAX_LIMIT is 2^22).
        let dead = format!("{}.{}", id.0, 1 << 23);
        let own = format!("{}.{}", id.0, std::process::id());
        let all = [id.0.as_str(), &own, &dead, "sa-x.y", "8388608", "x.8388608"];
        for name in &all[1..] {
            fs::write(dir.path().join(name), "x").expect("writes");
        }
        Store::open(dir.path()).expect("opens");
        let left = all.map(|name| dir.path().join(name).exists());
        assert_eq!(left, [true, true, false, true, true, true]);
    }

    #[test]
    fn a_key_is_the_same_in_another_algorithm() {
        let gmac = Keys::Esp(EspKeys::Combined(Aead::AesGmac, secret(1)));
        assert_eq!(KeyId::of(&gcm(1)), KeyId::of(&gmac));
        assert_ne!(KeyId::of(&gcm(1)), KeyId::of(&gcm(2)));
        let mac = |cipher, key, auth| {
            let auth = secret(auth);
            KeyId::of(&Keys::Esp(EspKeys::EncryptThenMac(cipher, key, Auth::HmacSha256_128, auth)))
        };
        let cbc = |auth| mac(Cipher::AesCbc, secret(3), auth);
        assert_eq!(cbc(4), cbc(5), "numbers are those of the key for encryption");
        let null = |auth| mac(Cipher::Null, Secret::new(Vec::new()), auth);
        assert_ne!(null(4), null(5));
        assert_eq!(null(4), KeyId::of(&Keys::Ah(Auth::HmacSha256_128, secret(4))));
    }

    #[test]
    fn a_directory_is_for_one_process_and_its_user_alone() {
        let dir = directory();
        prepare(dir.path()).expect("is right");
        let store = Store::open(dir.path()).expect("opens");
        let error = Store::open(dir.path()).expect_err("is taken").to_string();
        assert!(error.contains("another process uses it"), "{error}");
        drop(store);
        Store::open(dir.path()).expect("is free again");
        let made = dir.path().join("made");
        prepare(&made).expect("is made");
        fs::set_permissions(&made, Permissions::from_mode(0o750)).expect("changes");
        let error = prepare(&made).expect_err("others can read it").to_string();
        assert!(error.contains("0750") && error.contains("chmod 0700"), "{error}");
        let link = dir.path().join("link");
        symlink(dir.path(), &link).expect("links");
        assert!(prepare(&link).is_err());
        let error = prepare(Path::new("/nonexistent/x")).expect_err("no directory").to_string();
        assert!(error.contains("StateDirectory="), "{error}");
    }
}
