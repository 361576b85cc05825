//! Bencode (BEP 3, *bencoding*), both ways.
//!
//! Reading checks everything once, iteratively, and then hands out views into the bytes themselves: nothing is built, so
//! memory does not depend on what the input says. Lists and dictionaries are walked lazily; [`Dict::get_many`] finds
//! several keys in one walk. Unsorted dictionaries are read (the info-hash is over the raw bytes, so their order cannot
//! be repaired); duplicate keys, trailing bytes and every non-canonical number are errors.

/// What a decoder may be made to do. `max_bytes` is also cut to 4 GiB, for positions are kept as `u32`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest input looked at.
    pub max_bytes: usize,
    /// Containers inside one another; the outermost is 1.
    pub max_depth: usize,
    /// Integers, strings (keys too), lists and dictionaries together.
    pub max_tokens: usize,
}

/// A dictionary that is out of order may have this many keys: its keys must be sorted to see duplicates, and an honest
/// writer that does not sort writes a handful of them.
const MAX_UNSORTED_KEYS: usize = 65_536;

/// Why bytes are not taken as bencode. `at` is the offset of the offending byte or token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    #[error("{got} bytes: at most {max} are read")]
    TooLarge { got: usize, max: usize },
    #[error("more than {max} lists and dictionaries inside one another")]
    TooDeep { max: usize },
    #[error("more than {max} values")]
    TooManyTokens { max: usize },
    #[error("the bytes end in the middle of a value")]
    Truncated,
    #[error("no value begins with the byte at {at}")]
    UnexpectedByte { at: usize },
    #[error("a malformed or too large integer at {at}")]
    Integer { at: usize },
    #[error("a malformed string length at {at}")]
    Length { at: usize },
    #[error("a dictionary key at {at} that is not a string")]
    KeyNotString { at: usize },
    #[error("a dictionary key without a value at {at}")]
    KeyWithoutValue { at: usize },
    #[error("a dictionary key twice, at {at}")]
    DuplicateKey { at: usize },
    #[error("a dictionary that ends at {at} is out of order and has more than {MAX_UNSORTED_KEYS} keys")]
    UnsortedTooLarge { at: usize },
    #[error("bytes after the end, at {at}")]
    TrailingBytes { at: usize },
}

/// One value: a view into bytes that were checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    List(List<'a>),
    Dict(Dict<'a>),
}

impl<'a> Value<'a> {
    pub fn as_int(self) -> Option<i64> {
        match self {
            Value::Int(int) => Some(int),
            _ => None,
        }
    }

    /// An integer that is not negative.
    pub fn as_u64(self) -> Option<u64> {
        self.as_int().and_then(|int| u64::try_from(int).ok())
    }

    pub fn as_bytes(self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// A string that is UTF-8.
    pub fn as_str(self) -> Option<&'a str> {
        self.as_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub fn as_list(self) -> Option<List<'a>> {
        match self {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    pub fn as_dict(self) -> Option<Dict<'a>> {
        match self {
            Value::Dict(dict) => Some(dict),
            _ => None,
        }
    }

    /// Shorthand: the value of `key` if this is a dictionary that has it.
    pub fn dict_get(self, key: &[u8]) -> Option<Value<'a>> {
        self.as_dict().and_then(|dict| dict.get(key))
    }
}

/// A list, from its `l` to its `e`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List<'a>(&'a [u8]);

impl<'a> List<'a> {
    /// The list's own bytes.
    pub fn raw(self) -> &'a [u8] {
        self.0
    }

    pub fn iter(self) -> Items<'a> {
        Items { rest: self.0.get(1..).unwrap_or_default() }
    }
}

impl<'a> IntoIterator for List<'a> {
    type Item = Value<'a>;
    type IntoIter = Items<'a>;
    fn into_iter(self) -> Items<'a> {
        self.iter()
    }
}

/// A dictionary, from its `d` to its `e`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dict<'a>(&'a [u8]);

impl<'a> Dict<'a> {
    /// The dictionary's own bytes: what an info-hash is taken of.
    pub fn raw(self) -> &'a [u8] {
        self.0
    }

    /// Keys and values in the order in which they lie.
    pub fn iter(self) -> Entries<'a> {
        Entries { items: Items { rest: self.0.get(1..).unwrap_or_default() } }
    }

    pub fn get(self, key: &[u8]) -> Option<Value<'a>> {
        self.iter().find(|(found, _)| *found == key).map(|(_, value)| value)
    }

    /// The values of several keys in one walk.
    pub fn get_many<const N: usize>(self, keys: [&[u8]; N]) -> [Option<Value<'a>>; N] {
        let mut values = [None; N];
        for (found, value) in self.iter() {
            if let Some((_, slot)) = keys.iter().zip(&mut values).find(|(key, _)| **key == found) {
                *slot = Some(value);
            }
        }
        values
    }
}

impl<'a> IntoIterator for Dict<'a> {
    type Item = (&'a [u8], Value<'a>);
    type IntoIter = Entries<'a>;
    fn into_iter(self) -> Entries<'a> {
        self.iter()
    }
}

/// Walks a list.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Items<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let (value, used) = first_value(self.rest)?;
        self.rest = self.rest.get(used..).unwrap_or_default();
        Some(value)
    }
}

/// Walks a dictionary.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    items: Items<'a>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.items.next()?.as_bytes()?;
        Some((key, self.items.next()?))
    }
}

/// Reads the one value that `bytes` are.
///
/// # Errors
/// When they are not exactly one bencoded value within `limits`.
pub fn decode<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Value<'a>, BencodeError> {
    let (value, used) = decode_prefix(bytes, limits)?;
    if used < bytes.len() {
        return Err(BencodeError::TrailingBytes { at: used });
    }
    Ok(value)
}

/// Reads the value that `bytes` begin with; also returns how many bytes it took. Extension messages (BEP 9) carry
/// payload behind a dictionary.
///
/// # Errors
/// When they do not begin with a bencoded value within `limits`.
pub fn decode_prefix<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(Value<'a>, usize), BencodeError> {
    let max = limits.max_bytes.min(u32::MAX as usize);
    if bytes.len() > max {
        return Err(BencodeError::TooLarge { got: bytes.len(), max });
    }
    let used = Checker { bytes, limits, open: Vec::new(), keys: Vec::new() }.run()?;
    let (value, _) = first_value(bytes).ok_or(BencodeError::Truncated)?;
    Ok((value, used))
}

/// What one step over the bytes meets. Strings are given by their span.
enum Token {
    Int(i64),
    Bytes { start: usize, end: usize },
    ListStart,
    DictStart,
    End,
}

/// Reads the token at `at`; returns it and where the next begins.
fn token(bytes: &[u8], at: usize) -> Result<(Token, usize), BencodeError> {
    match *bytes.get(at).ok_or(BencodeError::Truncated)? {
        b'i' => integer(bytes, at),
        b'l' => Ok((Token::ListStart, at + 1)),
        b'd' => Ok((Token::DictStart, at + 1)),
        b'e' => Ok((Token::End, at + 1)),
        b'0'..=b'9' => string(bytes, at),
        _ => Err(BencodeError::UnexpectedByte { at }),
    }
}

/// `i` digits `e`, canonical: no plus, no leading zero, no minus zero, inside an `i64`.
fn integer(bytes: &[u8], at: usize) -> Result<(Token, usize), BencodeError> {
    let bad = BencodeError::Integer { at };
    let negative = bytes.get(at + 1) == Some(&b'-');
    let first = at + 1 + usize::from(negative);
    let mut value: i64 = 0;
    let mut end = first;
    loop {
        match *bytes.get(end).ok_or(BencodeError::Truncated)? {
            digit @ b'0'..=b'9' => {
                let digit = i64::from(digit - b'0');
                let step = if negative { -digit } else { digit };
                value = value.checked_mul(10).and_then(|tens| tens.checked_add(step)).ok_or(bad)?;
                end += 1;
            }
            b'e' => break,
            _ => return Err(bad),
        }
    }
    let digits = end - first;
    let leading_zero = bytes.get(first) == Some(&b'0') && (digits > 1 || negative);
    if digits == 0 || leading_zero {
        return Err(bad);
    }
    Ok((Token::Int(value), end + 1))
}

/// Length, colon, bytes; the length without leading zeros.
fn string(bytes: &[u8], at: usize) -> Result<(Token, usize), BencodeError> {
    let bad = BencodeError::Length { at };
    let mut len: usize = 0;
    let mut colon = at;
    loop {
        match *bytes.get(colon).ok_or(BencodeError::Truncated)? {
            digit @ b'0'..=b'9' => {
                if len == 0 && colon > at {
                    return Err(bad);
                }
                len = len.checked_mul(10).and_then(|len| len.checked_add(usize::from(digit - b'0'))).ok_or(bad)?;
                colon += 1;
            }
            b':' => break,
            _ => return Err(bad),
        }
    }
    let start = colon + 1;
    let end = start.checked_add(len).filter(|&end| end <= bytes.len()).ok_or(BencodeError::Truncated)?;
    Ok((Token::Bytes { start, end }, end))
}

/// The value at the head of checked bytes and its length; `None` at a container's end.
fn first_value(bytes: &[u8]) -> Option<(Value<'_>, usize)> {
    let (head, used) = token(bytes, 0).ok()?;
    match head {
        Token::Int(int) => Some((Value::Int(int), used)),
        Token::Bytes { start, end } => Some((Value::Bytes(bytes.get(start..end)?), used)),
        Token::ListStart => container(bytes).map(|raw| (Value::List(List(raw)), raw.len())),
        Token::DictStart => container(bytes).map(|raw| (Value::Dict(Dict(raw)), raw.len())),
        Token::End => None,
    }
}

/// The bytes of the container that checked bytes begin with.
fn container(bytes: &[u8]) -> Option<&[u8]> {
    let mut depth = 0usize;
    let mut at = 0;
    loop {
        let (found, next) = token(bytes, at).ok()?;
        match found {
            Token::ListStart | Token::DictStart => depth += 1,
            Token::End => depth = depth.checked_sub(1)?,
            Token::Int(_) | Token::Bytes { .. } => {}
        }
        at = next;
        if depth == 0 {
            return bytes.get(..at);
        }
    }
}

/// A container that has not ended yet.
struct Open {
    dict: bool,
    /// A dictionary's key was read and its value is due.
    value_due: bool,
    /// All its keys so far rose.
    sorted: bool,
    /// Where its keys begin in [`Checker::keys`].
    first_key: usize,
}

/// The one pass that proves the bytes. Besides the stack it holds four bytes for each key of the dictionaries that are
/// open: that is all the memory an input can claim.
struct Checker<'a> {
    bytes: &'a [u8],
    limits: &'a Limits,
    open: Vec<Open>,
    /// Offsets of the keys of all open dictionaries.
    keys: Vec<u32>,
}

impl Checker<'_> {
    /// Returns where the first value ends.
    fn run(mut self) -> Result<usize, BencodeError> {
        let mut at = 0;
        let mut tokens = 0;
        loop {
            let (found, next) = token(self.bytes, at)?;
            if !matches!(found, Token::End) {
                tokens += 1;
                if tokens > self.limits.max_tokens {
                    return Err(BencodeError::TooManyTokens { max: self.limits.max_tokens });
                }
            }
            match found {
                Token::End => self.close(at)?,
                Token::Bytes { .. } if self.key_due() => self.key(at)?,
                _ if self.key_due() => return Err(BencodeError::KeyNotString { at }),
                Token::ListStart => self.push(false)?,
                Token::DictStart => self.push(true)?,
                Token::Int(_) | Token::Bytes { .. } => self.value_done(),
            }
            at = next;
            if self.open.is_empty() {
                return Ok(at);
            }
        }
    }

    fn key_due(&self) -> bool {
        self.open.last().is_some_and(|open| open.dict && !open.value_due)
    }

    fn value_done(&mut self) {
        if let Some(open) = self.open.last_mut() {
            open.value_due = false;
        }
    }

    fn push(&mut self, dict: bool) -> Result<(), BencodeError> {
        if self.open.len() >= self.limits.max_depth {
            return Err(BencodeError::TooDeep { max: self.limits.max_depth });
        }
        self.open.push(Open { dict, value_due: false, sorted: true, first_key: self.keys.len() });
        Ok(())
    }

    fn key(&mut self, at: usize) -> Result<(), BencodeError> {
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        if let Some(&before) = self.keys.get(open.first_key..).and_then(<[u32]>::last) {
            match key_at(self.bytes, before).cmp(key_at(self.bytes, at as u32)) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Err(BencodeError::DuplicateKey { at }),
                std::cmp::Ordering::Greater => open.sorted = false,
            }
        }
        open.value_due = true;
        self.keys.push(at as u32);
        Ok(())
    }

    fn close(&mut self, at: usize) -> Result<(), BencodeError> {
        let open = self.open.pop().ok_or(BencodeError::UnexpectedByte { at })?;
        if open.value_due {
            return Err(BencodeError::KeyWithoutValue { at });
        }
        if !open.sorted {
            let keys = self.keys.get_mut(open.first_key..).unwrap_or_default();
            if keys.len() > MAX_UNSORTED_KEYS {
                return Err(BencodeError::UnsortedTooLarge { at });
            }
            keys.sort_unstable_by_key(|&key| key_at(self.bytes, key));
            let twice = keys.windows(2).find(|pair| key_at(self.bytes, pair[0]) == key_at(self.bytes, pair[1]));
            if let Some(pair) = twice {
                return Err(BencodeError::DuplicateKey { at: pair[0].max(pair[1]) as usize });
            }
        }
        self.keys.truncate(open.first_key);
        self.value_done();
        Ok(())
    }
}

/// The string at an offset where one is known to lie.
fn key_at(bytes: &[u8], at: u32) -> &[u8] {
    match string(bytes, at as usize) {
        Ok((Token::Bytes { start, end }, _)) => bytes.get(start..end).unwrap_or_default(),
        _ => &[],
    }
}

/// Writes canonical bencode at the end of a buffer.
///
/// ```
/// let mut out = Vec::new();
/// peerd::wire::bencode::Encoder::new(&mut out).dict(|dict| {
///     dict.int(b"interval", 60);
///     dict.bytes(b"peers", &[]);
/// });
/// assert_eq!(out, b"d8:intervali60e5:peers0:e");
/// ```
#[derive(Debug)]
pub struct Encoder<'o> {
    out: &'o mut Vec<u8>,
}

impl<'o> Encoder<'o> {
    pub fn new(out: &'o mut Vec<u8>) -> Encoder<'o> {
        Encoder { out }
    }

    pub fn int(&mut self, value: i64) {
        self.out.push(b'i');
        self.out.extend_from_slice(value.to_string().as_bytes());
        self.out.push(b'e');
    }

    pub fn bytes(&mut self, value: &[u8]) {
        self.out.extend_from_slice(value.len().to_string().as_bytes());
        self.out.push(b':');
        self.out.extend_from_slice(value);
    }

    /// One value that is bencode already.
    pub fn raw(&mut self, value: &[u8]) {
        self.out.extend_from_slice(value);
    }

    pub fn list(&mut self, items: impl FnOnce(&mut Encoder<'_>)) {
        self.out.push(b'l');
        items(&mut Encoder { out: self.out });
        self.out.push(b'e');
    }

    pub fn dict(&mut self, entries: impl FnOnce(&mut DictEncoder<'_>)) {
        self.out.push(b'd');
        entries(&mut DictEncoder { out: self.out, last_key: 0..0, any: false });
        self.out.push(b'e');
    }
}

/// Writes a dictionary's entries; the caller names the keys in rising order of their bytes.
#[derive(Debug)]
pub struct DictEncoder<'o> {
    out: &'o mut Vec<u8>,
    /// Where the key written last lies in `out`.
    last_key: std::ops::Range<usize>,
    any: bool,
}

impl DictEncoder<'_> {
    /// Writes the key; its value goes to the encoder that is returned.
    fn value(&mut self, key: &[u8]) -> Encoder<'_> {
        let rises = !self.any || self.out.get(self.last_key.clone()).is_some_and(|last| last < key);
        debug_assert!(rises, "dictionary key {} is out of order", key.escape_ascii());
        Encoder { out: self.out }.bytes(key);
        self.last_key = self.out.len() - key.len()..self.out.len();
        self.any = true;
        Encoder { out: self.out }
    }

    pub fn int(&mut self, key: &[u8], value: i64) {
        self.value(key).int(value);
    }

    pub fn bytes(&mut self, key: &[u8], value: &[u8]) {
        self.value(key).bytes(value);
    }

    /// An entry whose value is bencode already.
    pub fn raw(&mut self, key: &[u8], value: &[u8]) {
        self.value(key).raw(value);
    }

    pub fn list(&mut self, key: &[u8], items: impl FnOnce(&mut Encoder<'_>)) {
        self.value(key).list(items);
    }

    pub fn dict(&mut self, key: &[u8], entries: impl FnOnce(&mut DictEncoder<'_>)) {
        self.value(key).dict(entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const LIMITS: Limits = Limits { max_bytes: 10 << 20, max_depth: 100, max_tokens: 3_000_000 };

    fn check(bytes: &[u8]) -> Result<Value<'_>, BencodeError> {
        decode(bytes, &LIMITS)
    }

    #[test]
    fn the_examples_of_bep_3() {
        assert_eq!(check(b"4:spam"), Ok(Value::Bytes(b"spam")));
        assert_eq!(check(b"0:"), Ok(Value::Bytes(b"")));
        assert_eq!(check(b"i3e"), Ok(Value::Int(3)));
        assert_eq!(check(b"i-3e"), Ok(Value::Int(-3)));
        assert_eq!(check(b"i0e"), Ok(Value::Int(0)));
        let list: Vec<Value<'_>> = check(b"l4:spam4:eggse").unwrap().as_list().unwrap().iter().collect();
        assert_eq!(list, [Value::Bytes(b"spam"), Value::Bytes(b"eggs")]);
        let dict = check(b"d3:cow3:moo4:spaml1:a1:bee").unwrap().as_dict().unwrap();
        assert_eq!(dict.get(b"cow"), Some(Value::Bytes(b"moo")));
        assert_eq!(dict.get(b"spam").and_then(Value::as_list).map(List::raw), Some(&b"l1:a1:be"[..]));
        assert_eq!(dict.get(b"pig"), None);
        let [spam, pig, cow] = dict.get_many([b"spam", b"pig", b"cow"]);
        assert!(spam.is_some() && pig.is_none() && cow == Some(Value::Bytes(b"moo")));
    }

    #[test]
    fn numbers_are_canonical() {
        assert_eq!(check(b"i9223372036854775807e"), Ok(Value::Int(i64::MAX)));
        assert_eq!(check(b"i-9223372036854775808e"), Ok(Value::Int(i64::MIN)));
        for bad in ["i-0e", "i+1e", "i01e", "i-01e", "ie", "i-e", "i 1e", "i1 e", "i9223372036854775808e", "i1.5e"] {
            assert_eq!(check(bad.as_bytes()), Err(BencodeError::Integer { at: 0 }), "{bad}");
        }
        let long = format!("i{}e", "1".repeat(30));
        assert_eq!(check(long.as_bytes()), Err(BencodeError::Integer { at: 0 }));
        for bad in ["01:a", "00:", "1a:", "99999999999999999999:x"] {
            assert_eq!(check(bad.as_bytes()), Err(BencodeError::Length { at: 0 }), "{bad}");
        }
        assert_eq!(check(b"999999999:x"), Err(BencodeError::Truncated));
        assert_eq!(check(b"18446744073709551615:x"), Err(BencodeError::Truncated));
    }

    #[test]
    fn dictionaries_may_be_unsorted_but_have_no_key_twice() {
        let unsorted = check(b"d1:bi1e1:ai2ee").unwrap();
        assert_eq!(unsorted.dict_get(b"a"), Some(Value::Int(2)));
        assert_eq!(check(b"d1:ai1e1:ai2ee"), Err(BencodeError::DuplicateKey { at: 7 }));
        assert_eq!(check(b"d1:ai1e1:bi1e1:ai2ee"), Err(BencodeError::DuplicateKey { at: 13 }));
        assert_eq!(check(b"d1:ad1:bi1e1:ai2e1:bi3eee"), Err(BencodeError::DuplicateKey { at: 17 }));
        assert!(check(b"d1:ad1:ai1ee1:bd1:ai1eee").is_ok(), "each dictionary has keys of its own");
        assert_eq!(check(b"di1ei2ee"), Err(BencodeError::KeyNotString { at: 1 }));
        assert_eq!(check(b"d1:ae"), Err(BencodeError::KeyWithoutValue { at: 4 }));
        let many: String = (0..=MAX_UNSORTED_KEYS).rev().map(|n| format!("6:{n:06}i0e")).collect();
        let many = format!("d{many}e");
        assert_eq!(check(many.as_bytes()), Err(BencodeError::UnsortedTooLarge { at: many.len() - 1 }));
    }

    #[test]
    fn what_is_not_one_value_is_refused() {
        assert_eq!(check(b""), Err(BencodeError::Truncated));
        assert_eq!(check(b"e"), Err(BencodeError::UnexpectedByte { at: 0 }));
        assert_eq!(check(b"x"), Err(BencodeError::UnexpectedByte { at: 0 }));
        assert_eq!(check(b"i1ei2e"), Err(BencodeError::TrailingBytes { at: 3 }));
        assert_eq!(check(b"<html>"), Err(BencodeError::UnexpectedByte { at: 0 }));
        assert_eq!(decode_prefix(b"d1:ai1eepayload", &LIMITS).map(|(_, used)| used), Ok(8));
        let whole = b"d1:ad1:bli1e3:xyze1:ci-7ee1:zlleee";
        assert!(check(whole).is_ok());
        for end in 0..whole.len() {
            assert_eq!(check(&whole[..end]), Err(BencodeError::Truncated), "cut at {end}");
        }
    }

    #[test]
    fn limits_hold_at_their_edge() {
        let nested = |depth: usize| [vec![b'l'; depth], vec![b'e'; depth]].concat();
        assert!(check(&nested(100)).is_ok());
        assert_eq!(check(&nested(101)), Err(BencodeError::TooDeep { max: 100 }));
        for bomb in [vec![b'l'; 10 << 20], b"d1:a".repeat((10 << 20) / 4)] {
            assert_eq!(check(&bomb), Err(BencodeError::TooDeep { max: 100 }));
        }
        let tight = Limits { max_bytes: 11, max_depth: 1, max_tokens: 4 };
        assert!(decode(b"li1ei2ei3ee", &tight).is_ok());
        assert_eq!(decode(b"li1ei2ei33ee", &tight), Err(BencodeError::TooLarge { got: 12, max: 11 }));
        assert_eq!(decode(b"l0:0:0:0:e", &tight), Err(BencodeError::TooManyTokens { max: 4 }));
        let bomb = [&b"l"[..], &b"i0e".repeat(3_000_000), b"e"].concat();
        assert_eq!(check(&bomb), Err(BencodeError::TooManyTokens { max: 3_000_000 }));
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn the_encoder_holds_its_caller_to_the_order() {
        Encoder::new(&mut Vec::new()).dict(|dict| {
            dict.int(b"b", 1);
            dict.int(b"a", 1);
        });
    }

    /// A value that owns itself, for round trips.
    #[derive(Clone, Debug, PartialEq)]
    enum Owned {
        Int(i64),
        Bytes(Vec<u8>),
        List(Vec<Owned>),
        Dict(BTreeMap<Vec<u8>, Owned>),
    }

    impl Owned {
        fn encode(&self, out: &mut Encoder<'_>) {
            match self {
                Owned::Int(int) => out.int(*int),
                Owned::Bytes(bytes) => out.bytes(bytes),
                Owned::List(items) => out.list(|out| items.iter().for_each(|item| item.encode(out))),
                Owned::Dict(entries) => out.dict(|out| {
                    for (key, value) in entries {
                        let mut raw = Vec::new();
                        value.encode(&mut Encoder::new(&mut raw));
                        out.raw(key, &raw);
                    }
                }),
            }
        }

        fn from(value: Value<'_>) -> Owned {
            match value {
                Value::Int(int) => Owned::Int(int),
                Value::Bytes(bytes) => Owned::Bytes(bytes.to_vec()),
                Value::List(list) => Owned::List(list.iter().map(Owned::from).collect()),
                Value::Dict(dict) => {
                    Owned::Dict(dict.iter().map(|(key, value)| (key.to_vec(), Owned::from(value))).collect())
                }
            }
        }
    }

    fn owned() -> impl Strategy<Value = Owned> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        let leaf = prop_oneof![any::<i64>().prop_map(Owned::Int), bytes().prop_map(Owned::Bytes)];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Owned::List),
                prop::collection::btree_map(bytes(), inner, 0..6).prop_map(Owned::Dict),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(value in owned()) {
            let mut bytes = Vec::new();
            value.encode(&mut Encoder::new(&mut bytes));
            prop_assert_eq!(Owned::from(check(&bytes).unwrap()), value);
        }

        #[test]
        fn what_is_accepted_in_order_is_canonical(value in owned(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = Vec::new();
            value.encode(&mut Encoder::new(&mut bytes));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(value) = check(&bytes) {
                let mut again = Vec::new();
                let owned = Owned::from(value);
                owned.encode(&mut Encoder::new(&mut again));
                prop_assert_eq!(again.len(), bytes.len());
                prop_assert_eq!(Owned::from(check(&again).unwrap()), owned);
            }
        }
    }
}
