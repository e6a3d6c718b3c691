#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = (tern_fuzz_cases::case("archive").run)(bytes);
});
