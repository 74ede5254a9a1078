//! Version numbers as kernels and drivers write them.

/// The leading numbers of a version, three of them: `6.18.4-200.fc43` is 6, 18, 4; what isn't there is 0.
pub fn parse(text: &str) -> Option<[u32; 3]> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let mut numbers = [0; 3];
    let mut parts = text[..end].split('.').filter(|part| !part.is_empty());
    numbers[0] = parts.next()?.parse().ok()?;
    for (number, part) in numbers[1..].iter_mut().zip(parts) {
        *number = part.parse().ok()?;
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn versions_are_their_leading_numbers() {
        assert_eq!(parse("6.18.4-200.fc43.x86_64"), Some([6, 18, 4]));
        assert_eq!(parse("6.18-rc6"), Some([6, 18, 0]));
        assert_eq!(parse("580.65.06"), Some([580, 65, 6]));
        assert_eq!(parse("7"), Some([7, 0, 0]));
        assert_eq!(parse("6.99999999999.1"), None);
        assert_eq!(parse("rc1"), None);
        assert_eq!(parse(""), None);
    }
}
