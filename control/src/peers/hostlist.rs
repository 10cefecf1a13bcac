//! Node lists as Slurm and others write them: `node[01-16,20],login1`.

use thiserror::Error;

/// Names that one list may expand to, at most.
pub const MAX_NAMES: usize = 65536;

/// Why a list cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostlistError {
    /// The syntax is wrong.
    #[error("{0:?} is not a node list such as node[01-16,20]")]
    Syntax(String),
    /// It expands to more than [`MAX_NAMES`].
    #[error("{0:?} expands to more than {MAX_NAMES} nodes")]
    TooMany(String),
}

/// The names of a list, in order. Ranges keep their leading zeros; several brackets in a name multiply.
///
/// # Errors
/// The text is not a node list, or expands to more than [`MAX_NAMES`].
pub fn expand(list: &str) -> Result<Vec<String>, HostlistError> {
    let wrong = || HostlistError::Syntax(list.into());
    let mut names = Vec::new();
    for pattern in split(list).ok_or_else(wrong)? {
        let mut partial = vec![String::new()];
        let mut rest = pattern;
        while let Some((fixed, bracket)) = rest.split_once('[') {
            let (ranges, after) = bracket.split_once(']').ok_or_else(wrong)?;
            let values = values(ranges, list)?;
            if partial.len().saturating_mul(values.len()) > MAX_NAMES {
                return Err(HostlistError::TooMany(list.into()));
            }
            partial = partial
                .iter()
                .flat_map(|name| values.iter().map(move |value| format!("{name}{fixed}{value}")))
                .collect();
            rest = after;
        }
        names.extend(partial.into_iter().map(|name| name + rest));
        if names.len() > MAX_NAMES {
            return Err(HostlistError::TooMany(list.into()));
        }
    }
    // The characters of DNS names, Slurm's names and addresses.
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if names.iter().all(|name| !name.is_empty() && name.len() <= 255 && name.bytes().all(letter)) {
        Ok(names)
    } else {
        Err(wrong())
    }
}

/// The parts between commas outside of brackets; None: the brackets do not match.
fn split(list: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (index, byte) in list.bytes().enumerate() {
        match byte {
            b'[' if !inside => inside = true,
            b']' if inside => inside = false,
            b'[' | b']' => return None,
            b',' if !inside => {
                parts.push(list.get(start..index)?);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(list.get(start..)?);
    (!inside).then_some(parts)
}

/// Expands the text in brackets: `01-03,7` is 01, 02, 03, 7.
fn values(ranges: &str, list: &str) -> Result<Vec<String>, HostlistError> {
    let wrong = || HostlistError::Syntax(list.into());
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<u64>().map_err(|_| wrong()) } else { Err(wrong()) }
    };
    let mut values = Vec::new();
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (width, first, last) = (first.len(), number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        if last - first >= (MAX_NAMES - values.len()) as u64 {
            return Err(HostlistError::TooMany(list.into()));
        }
        values.extend((first..=last).map(|value| format!("{value:0width$}")));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (list, names) in [
            ("node1", "node1"),
            ("node[01-03,20],login1", "node01 node02 node03 node20 login1"),
            ("r[1-2]n[9-10]", "r1n9 r1n10 r2n9 r2n10"),
            ("10.0.[0-1].[1-2]", "10.0.0.1 10.0.0.2 10.0.1.1 10.0.1.2"),
            ("fd00::[8-9]", "fd00::8 fd00::9"),
            ("n[008-011].site", "n008.site n009.site n010.site n011.site"),
        ] {
            assert_eq!(expand(list).unwrap().join(" "), names);
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for list in
            ["", "a,", "n[1-", "n]1[", "n[[1]]", "n[]", "n[a-b]", "n[3-1]", "n[+1]", "n 1", "n[-1]", "n/1"]
        {
            assert_eq!(expand(list), Err(HostlistError::Syntax(list.into())), "{list}");
        }
    }

    #[test]
    fn lists_are_bounded() {
        assert_eq!(expand("n[0-65535]").unwrap().len(), MAX_NAMES);
        for list in [
            "n[0-65536]",
            "n[1-256][1-257]",
            "n[0-65535],m",
            "n[0-18446744073709551615]",
            "n[1-40000,1-40000]",
        ] {
            assert_eq!(expand(list), Err(HostlistError::TooMany(list.into())), "{list}");
        }
    }
}
