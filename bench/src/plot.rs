//! Curves on two logarithmic axes, as an SVG image.

use std::fmt::Write;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
/// Around the axes: room for numbers and words.
const MARGIN: f64 = 60.0;
/// Told apart by people who see few colours, too.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// How a cost grows: both relative to the first point.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// The curves, and dashed what is linear.
pub fn svg(curves: &[Curve], x_name: &str, y_name: &str) -> String {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let x_most = all().map(|point| point.0).fold(2.0, f64::max).log2();
    let y_least = all().map(|point| point.1).fold(1.0, f64::min).log2().floor();
    let y_most = all().map(|point| point.1).fold(2.0, f64::max).log2().ceil();
    let x = |value: f64| MARGIN + value.log2() / x_most * (WIDTH - 2.0 * MARGIN);
    let y = |value: f64| HEIGHT - MARGIN - (value.log2() - y_least) / (y_most - y_least) * (HEIGHT - 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    // Writing to a string cannot fail.
    let mut text = |x: f64, y: f64, anchor: &str, colour: &str, words: &str| {
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{}</text>",
            words.replace('&', "&amp;").replace('<', "&lt;")
        );
    };
    for power in 0..=x_most as i32 {
        text(x(2f64.powi(power)), HEIGHT - MARGIN + 18.0, "middle", "black", &format!("{}", 2f64.powi(power)));
    }
    for power in y_least as i32..=y_most as i32 {
        text(MARGIN - 6.0, y(2f64.powi(power)) + 4.0, "end", "black", &format!("{}", 2f64.powi(power)));
    }
    text(WIDTH / 2.0, HEIGHT - 14.0, "middle", "black", x_name);
    text(MARGIN, 20.0, "start", "black", y_name);
    for ((at, curve), colour) in curves.iter().enumerate().zip(COLOURS.iter().cycle()) {
        text(MARGIN + 12.0, MARGIN + 16.0 * at as f64, "start", colour, &curve.name);
    }
    let line_end = x_most.min(y_most);
    let (from, to) = ((x(1.0), y(1.0)), (x(line_end.exp2()), y(line_end.exp2())));
    let _ = writeln!(
        out,
        "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"#999\" stroke-dasharray=\"5 4\"/>",
        from.0, from.1, to.0, to.1
    );
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<String> = curve.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let points = points.join(" ");
        let _ = writeln!(out, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
    }
    out.push_str("</svg>\n");
    out
}
