//! The closing lines of runners.

/// A runner's closing line, or why it failed.
pub type Closing = Result<String, String>;

/// A runner's name, with its kernel if it has one, and its closing line.
pub type Closings = Vec<(String, Closing)>;

/// Prints one closing line per runner. False: one failed.
pub fn conclude(closings: &Closings) -> bool {
    println!();
    for (name, closing) in closings {
        match closing {
            Ok(line) => println!("{name}: {line}"),
            Err(line) => println!("{name}: FAILED: {line}"),
        }
    }
    closings.iter().all(|(_, closing)| closing.is_ok())
}

/// The numbers of tests in the closing line of one test program: passed, failed, ignored, measured, filtered out.
pub fn counted(line: &str) -> Option<[u64; 5]> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let numbers = rest.split("; ").map_while(|part| part.split(' ').next()?.parse().ok());
    numbers.collect::<Vec<u64>>().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn closing_lines_of_test_programs_are_counted() {
        let line =
            "test result: ok. 8 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.00s";
        assert_eq!(counted(line), Some([8, 1, 2, 0, 7]));
        assert_eq!(
            counted("test result: FAILED. 0 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out"),
            Some([0, 3, 0, 0, 0])
        );
        assert_eq!(counted("test a::b ... ok"), None);
    }
}
