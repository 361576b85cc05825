//! The header under which something is published.

use peerd::wire::auth::{Authorization, NotAnAuthorization, signing_text};
use peerd::wire::id::InfoHash;

use super::bounds::bounded;

/// Lenient: the scheme and the hex may be of either case (RFC 9110, section 11.1), the seconds may begin with zeros.
pub fn run(input: &[u8]) {
    check(input, str::parse);
}

pub fn check(input: &[u8], decode: impl Fn(&str) -> Result<Authorization, NotAnAuthorization>) {
    let Ok(text) = str::from_utf8(input) else { return };
    let Ok(authorization) = bounded(input, || decode(text)) else { return };
    let again = authorization.to_string();
    assert_eq!(again.parse(), Ok(authorization.clone()));
    let seconds = authorization.unix_seconds.to_string();
    assert!(format!("{authorization:?}").ends_with(&seconds));
    let signed = signing_text("POST", "tracker", &InfoHash::new([7; 20]), authorization.unix_seconds);
    assert!(signed.ends_with(seconds.as_bytes()));
    let (head, tail) = text.split_once('.').expect("the seconds stand between dots");
    let without_zeros = format!("{head}.{}", tail.trim_start_matches('0'));
    let expected = again.replacen(".0.", "..", 1);
    assert!(without_zeros.eq_ignore_ascii_case(&expected), "{text} became {again}");
}
