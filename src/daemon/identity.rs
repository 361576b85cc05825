//! This peer's Ed25519 key: made at the first start, kept in state/identity, used to sign what is published and to prove
//! to other peerds who we are.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::wire::auth::{Authorization, signing_text};
use crate::wire::id::InfoHash;
use crate::wire::identity::{KEY_BYTES, NONCE_BYTES, Proof};

const SEED_BYTES: usize = 32;
/// Whoever reads the file can publish and withdraw in this peer's name.
const FILE_MODE: u32 = 0o600;

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} can be used by others than its owner (mode {mode:04o}): this peer's identity may be known to them; \
         `chmod 600` it if you trust them, or remove it to start with a new identity"
    )]
    Mode { path: PathBuf, mode: u32 },
    #[error(
        "{path} is not an identity of peerd: a regular file of {SEED_BYTES} bytes is due; \
         move it away to start with a new identity"
    )]
    Shape { path: PathBuf },
    #[error("no randomness from the system for a new identity: {0}")]
    Randomness(getrandom::Error),
}

/// The secret key, and what is done with it.
pub struct Signer {
    key: SigningKey,
}

impl Signer {
    /// From the 32 bytes that the file holds (RFC 8032's private key).
    pub fn from_seed(seed: &[u8; SEED_BYTES]) -> Signer {
        Signer { key: SigningKey::from_bytes(seed) }
    }

    /// Reads the file, or makes a key and writes it: whole and on the disk, or not at all. Blocks; meant for the start.
    /// The caller holds the lock on the state folder.
    ///
    /// # Errors
    /// When the file is not the owner's alone, is no identity, or cannot be read or written.
    pub fn load_or_create(path: &Path) -> Result<Signer, IdentityError> {
        match File::open(path) {
            Ok(file) => load(&file, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
            Err(source) => Err(IdentityError::Io { path: path.to_owned(), source }),
        }
    }

    pub fn public_key(&self) -> [u8; KEY_BYTES] {
        self.key.verifying_key().to_bytes()
    }

    /// The header that publishes or withdraws `info_hash`: `host` is the Host header of the same request.
    pub fn authorize(&self, method: &str, host: &str, info_hash: &InfoHash, unix_seconds: u64) -> Authorization {
        let signature = self.key.sign(&signing_text(method, host, info_hash, unix_seconds)).to_bytes();
        Authorization { key: self.public_key(), unix_seconds, signature }
    }

    /// The proof that we are who we say, over [`crate::wire::identity::signing_text`].
    pub fn prove(&self, text: &[u8]) -> Proof {
        Proof(self.key.sign(text).to_bytes())
    }
}

/// Bytes for the proof of one connection, from the operating system.
///
/// # Errors
/// When it has none to give.
pub fn fresh_nonce() -> Result<[u8; NONCE_BYTES], getrandom::Error> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce)?;
    Ok(nonce)
}

/// Whether the secret half of `key` signed `text`. Strictly: neither a key of small order nor a second form of a
/// signature counts.
pub fn is_signed_by(key: &[u8; KEY_BYTES], text: &[u8], proof: &Proof) -> bool {
    VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify_strict(text, &Signature::from_bytes(&proof.0)).is_ok())
}

fn load(mut file: &File, path: &Path) -> Result<Signer, IdentityError> {
    let failed = |source| IdentityError::Io { path: path.to_owned(), source };
    let shape = || IdentityError::Shape { path: path.to_owned() };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() != SEED_BYTES as u64 {
        return Err(shape());
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Mode { path: path.to_owned(), mode });
    }
    let mut seed = [0; SEED_BYTES];
    file.read_exact(&mut seed).map_err(failed)?;
    Ok(Signer::from_seed(&seed))
}

fn create(path: &Path) -> Result<Signer, IdentityError> {
    let mut seed = [0; SEED_BYTES];
    getrandom::fill(&mut seed).map_err(IdentityError::Randomness)?;
    write_whole(path, &seed).map_err(|source| IdentityError::Io { path: path.to_owned(), source })?;
    Ok(Signer::from_seed(&seed))
}

fn write_whole(path: &Path, seed: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // Left by a start that was cut short; `create_new` below must not find it, whatever it is.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary)?;
    file.write_all(seed)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        fs::write(dir.path().join("identity.new"), b"cut short").unwrap();
        let first = Signer::load_or_create(&path).unwrap();
        let again = Signer::load_or_create(&path).unwrap();
        assert_eq!(first.public_key(), again.public_key());
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o7777), (32, 0o600));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_no_identity_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        fs::write(&path, [7; 32]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Signer::load_or_create(&path).err().unwrap();
        assert!(matches!(error, IdentityError::Mode { mode: 0o640, .. }) && error.to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [7; 31]).unwrap();
        assert!(matches!(Signer::load_or_create(&path), Err(IdentityError::Shape { .. })));
        assert_eq!(fs::read(&path).unwrap(), [7; 31]);
        assert!(matches!(Signer::load_or_create(dir.path()), Err(IdentityError::Shape { .. })));
    }

    #[test]
    fn what_is_signed_can_be_verified_with_the_public_key() {
        let signer = Signer::from_seed(&[9; 32]);
        let key = InfoHash::new([1; 20]);
        let header = signer.authorize("POST", "t:6969", &key, 1_790_000_000);
        let verifier = VerifyingKey::from_bytes(&header.key).unwrap();
        let signature = Signature::from_bytes(&header.signature);
        assert!(verifier.verify_strict(&signing_text("POST", "t:6969", &key, 1_790_000_000), &signature).is_ok());
        assert!(verifier.verify_strict(&signing_text("DELETE", "t:6969", &key, 1_790_000_000), &signature).is_err());
        let (proof, key) = (signer.prove(b"text"), signer.public_key());
        assert!(is_signed_by(&key, b"text", &proof));
        assert!(!is_signed_by(&key, b"texT", &proof) && !is_signed_by(&[9; 32], b"text", &proof));
        assert_ne!(fresh_nonce().unwrap(), fresh_nonce().unwrap());
    }
}
