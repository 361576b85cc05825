//! Making a torrent of what is there: hashing files on several cores, and listing a folder that is shared as one torrent.
//!
//! Whether the files stayed the same meanwhile is for the caller to see, by comparing a
//! [`FileStat`](super::watch::FileStat) from before with one from after.

mod hash;
mod list;

pub use hash::{HashError, hash_file, hash_files, hash_folder};
pub use list::{FolderListing, ListError, list_folder};
