//! Values as JSON, as every bridge writes them.

use serde_json::Value;

/// The largest integer that a JSON reader may take for a double without losing digits.
const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Writes a string.
pub(in crate::bridge) fn write_str(out: &mut Vec<u8>, text: &str) {
    // Writing to memory does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// Writes any JSON.
pub(in crate::bridge) fn write_json(out: &mut Vec<u8>, value: &Value) {
    let _ = serde_json::to_writer(out, value);
}

/// Writes a text that needs no escaping, such as a date.
pub(in crate::bridge) fn write_plain(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    out.push(b'"');
    let _ = out.write_fmt(text);
    out.push(b'"');
}

/// Writes an integer: a number where every reader keeps its digits, else a string.
pub(in crate::bridge) fn write_int(out: &mut Vec<u8>, number: i64) {
    write_digits(
        out,
        itoa::Buffer::new().format(number),
        number.unsigned_abs(),
    );
}

/// Writes an unsigned integer like [`write_int`].
pub(in crate::bridge) fn write_uint(out: &mut Vec<u8>, number: u64) {
    write_digits(out, itoa::Buffer::new().format(number), number);
}

fn write_digits(out: &mut Vec<u8>, digits: &str, magnitude: u64) {
    let quote = magnitude > MAX_SAFE_INTEGER;
    if quote {
        out.push(b'"');
    }
    out.extend_from_slice(digits.as_bytes());
    if quote {
        out.push(b'"');
    }
}

/// Writes a double; what is not finite is a string.
pub(in crate::bridge) fn write_f64(out: &mut Vec<u8>, number: f64) {
    if number.is_finite() {
        let _ = serde_json::to_writer(out, &number);
    } else {
        write_not_finite(out, number);
    }
}

/// Writes a single with the digits that a single has.
pub(in crate::bridge) fn write_f32(out: &mut Vec<u8>, number: f32) {
    if number.is_finite() {
        let _ = serde_json::to_writer(out, &number);
    } else {
        write_not_finite(out, number.into());
    }
}

fn write_not_finite(out: &mut Vec<u8>, number: f64) {
    out.extend_from_slice(match number {
        _ if number.is_nan() => b"\"NaN\"".as_slice(),
        _ if number > 0.0 => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    });
}

/// Writes bytes as base64.
pub(in crate::bridge) fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    use base64::Engine as _;
    out.push(b'"');
    out.extend_from_slice(
        base64::engine::general_purpose::STANDARD
            .encode(bytes)
            .as_bytes(),
    );
    out.push(b'"');
}

/// Writes text that may not be UTF-8 after all, in which case it is base64.
pub(in crate::bridge) fn write_text(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => write_str(out, text),
        Err(_) => write_base64(out, bytes),
    }
}

/// Writes what a JSON column holds as it is, digits, order and repetitions included; what is no JSON after all is a
/// string.
pub(in crate::bridge) fn write_raw_json(out: &mut Vec<u8>, bytes: &[u8]) {
    match serde_json::from_slice::<&serde_json::value::RawValue>(bytes) {
        // A line break between tokens would end a row of NDJSON.
        Ok(json) if json.get().contains(['\n', '\r']) => write_without_space(out, json.get()),
        Ok(json) => out.extend_from_slice(json.get().as_bytes()),
        Err(_) => write_text(out, bytes),
    }
}

/// Copies a JSON document without the white space between its tokens.
fn write_without_space(out: &mut Vec<u8>, json: &str) {
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        if !in_string && byte.is_ascii_whitespace() {
            continue;
        }
        out.push(byte);
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ => {}
        }
    }
}
