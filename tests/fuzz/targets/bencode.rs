//! Bencode by itself, under limits that short inputs reach.

use peerd::wire::bencode::{self, BencodeError, Dict, Encoder, Limits, Value};

use super::bounds::bounded;

pub const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_depth: 16, max_tokens: 1_000 };
/// Keys of one dictionary that are looked up again: each is a walk.
const LOOKED_UP: usize = 8;

/// Strict: whatever is read is written again byte by byte, out of order as it came.
pub fn run(input: &[u8]) {
    check(input, |input| bencode::decode(input, &LIMITS));
}

pub fn check<'a>(input: &'a [u8], decode: impl Fn(&'a [u8]) -> Result<Value<'a>, BencodeError>) {
    let decoded = bounded(input, || decode(input));
    if let Ok(value) = decoded {
        let mut walk = Walk { tokens: 0, again: Vec::new() };
        walk.value(value, 0);
        assert_eq!(walk.again, input);
        assert!(walk.tokens <= LIMITS.max_tokens, "{} tokens", walk.tokens);
    }
    if let Ok((value, used)) = bencode::decode_prefix(input, &LIMITS) {
        assert_eq!(bencode::decode(&input[..used], &LIMITS), Ok(value));
        assert_eq!(decoded.is_ok(), used == input.len());
    }
}

struct Walk {
    tokens: usize,
    again: Vec<u8>,
}

impl Walk {
    fn value(&mut self, value: Value<'_>, depth: usize) {
        self.tokens += 1;
        let mut encoder = Encoder::new(&mut self.again);
        match value {
            Value::Int(int) => encoder.int(int),
            Value::Bytes(bytes) => encoder.bytes(bytes),
            Value::List(list) => {
                encoder.raw(b"l");
                list.iter().for_each(|item| self.value(item, self.inside(depth)));
                self.again.push(b'e');
            }
            Value::Dict(dict) => self.dict(dict, self.inside(depth)),
        }
    }

    fn dict(&mut self, dict: Dict<'_>, depth: usize) {
        self.again.push(b'd');
        for (at, (key, value)) in dict.iter().enumerate() {
            self.tokens += 1;
            Encoder::new(&mut self.again).bytes(key);
            self.value(value, depth);
            if at < LOOKED_UP {
                assert_eq!(dict.get(key), Some(value), "a key is there twice");
                assert_eq!(dict.get_many([key]), [Some(value)]);
            }
        }
        self.again.push(b'e');
    }

    fn inside(&self, depth: usize) -> usize {
        assert!(depth < LIMITS.max_depth, "more than {} deep", LIMITS.max_depth);
        depth + 1
    }
}
