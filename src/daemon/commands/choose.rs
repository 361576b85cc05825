//! Which of several names words mean: an exact name (in any case) wins alone, then a name without its extension, then
//! the only one of the rest.

use crate::wire::name::split_extension;

/// Indices into what was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    None,
    One(usize),
    Several(Vec<usize>),
}

/// Each candidate comes with whether it matches at all when neither name nor stem is equal.
pub fn choose<'a>(words: &str, candidates: impl Iterator<Item = (&'a str, bool)>) -> Choice {
    let wanted = words.trim().to_lowercase();
    let (mut exact, mut stem, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (name, matches)) in candidates.enumerate() {
        let name = name.to_lowercase();
        if name == wanted {
            exact.push(index);
        } else if split_extension(&name).0 == wanted {
            stem.push(index);
        } else if matches {
            rest.push(index);
        }
    }
    let best = [exact, stem, rest].into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    match best.as_slice() {
        [] => Choice::None,
        [one] => Choice::One(*one),
        _ => Choice::Several(best),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_names_win_then_stems_then_the_only_one_left() {
        let names = [("Got5.mp4", true), ("got5", true), ("got55.mp4", true), ("got6.mp4", false)];
        assert_eq!(choose("GOT5", names.into_iter()), Choice::One(1));
        assert_eq!(choose("got5.mp4", names.into_iter()), Choice::One(0));
        assert_eq!(choose("got5", names[..1].iter().copied()), Choice::One(0));
        assert_eq!(choose("got6", names.into_iter()), Choice::One(3));
        assert_eq!(choose("got", names.into_iter()), Choice::Several(vec![0, 1, 2]));
        assert_eq!(choose("got", names[2..].iter().copied()), Choice::One(0));
        assert_eq!(choose("x", [("y", false)].into_iter()), Choice::None);
        assert_eq!(
            choose("a", [("a.txt", true), ("a.pdf", true), ("ab", true)].into_iter()),
            Choice::Several(vec![0, 1])
        );
    }
}
