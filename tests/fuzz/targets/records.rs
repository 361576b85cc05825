//! What is read back from the database.

use std::fmt::Debug;

use peerd::daemon::records::{
    LedgerFileRecord, LedgerRecord, SettingRecord, ShareRecord, StatRecord, TorrentRecord, decode_file_stats,
    encode_file_stats, file_stats_len,
};
use peerd::db::record::{self, Record, RecordError};

use super::bounds::bounded;

/// The version that the frame is opened with.
pub const VERSION: u8 = 1;

/// The frame is strict. Lenient: in its payload a number may be written with more bytes than it needs (postcard).
///
/// A payload changed at random would not pass its checksum, so that the input is also sealed and then read as each of
/// the records.
pub fn run(input: &[u8]) {
    check(input, |input| record::open(VERSION, input));
    payload::<LedgerFileRecord>(input);
    payload::<LedgerRecord>(input);
    payload::<SettingRecord>(input);
    payload::<ShareRecord>(input);
    payload::<StatRecord>(input);
    payload::<TorrentRecord>(input);
    let stats = bounded(input, || decode_file_stats(input));
    assert!(input.starts_with(&encode_file_stats(&stats)) && file_stats_len(stats.len()) <= input.len());
}

pub fn check<'a>(input: &'a [u8], open: impl Fn(&'a [u8]) -> Result<&'a [u8], RecordError>) {
    if let Ok(payload) = bounded(input, || open(input)) {
        assert_eq!(record::seal(VERSION, payload), input);
    }
}

fn payload<R: Record + PartialEq + Debug>(input: &[u8]) {
    let sealed = record::seal(R::VERSION, input);
    let Ok(decoded) = bounded(&sealed, || record::decode_record::<R>(&sealed)) else { return };
    let again = record::encode_record(&decoded);
    assert!(again == sealed || again.len() < sealed.len(), "{decoded:?}");
    assert_eq!(record::decode_record::<R>(&again), Ok(decoded));
}
