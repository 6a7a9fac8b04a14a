"""The coefficients of `math.py`, lowest power first, for float and double.

Minimax in the weight that is named (relative error unless said): Remez exchange with 50 digits, then rounded
one coefficient after the other, the rest fitted anew after each (`tests/math_fit.py` prints them).
Hexadecimal, so that what is written is what is used.
"""

from __future__ import annotations

_TEXT: dict[str, dict[str, str]] = {
    # (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, relative to e^r
    "exp": {
        "float": "0x1.fffffcp-2 0x1.55548cp-3 0x1.55585ap-5 0x1.123d8cp-7 0x1.6abafcp-10",
        "double": (
            "0x1.000000000000ap-1 0x1.55555555554c6p-3 0x1.55555555504d8p-5 0x1.111111111f40bp-7 "
            "0x1.6c16c18596c98p-10 0x1.a01a01ad5fb55p-13 0x1.a01994af10441p-16 0x1.71dd6c3084045p-19 "
            "0x1.28b37a68fdc26p-22 0x1.b0f88fd0499c2p-26"
        ),
    },
    # the same, relative to e^r - 1
    "expm1": {
        "float": "0x1p-1 0x1.55552cp-3 0x1.555502p-5 0x1.1155ap-7 0x1.6d2e4cp-10 0x1.3b75fcp-13",
        "double": (
            "0x1p-1 0x1.5555555555559p-3 0x1.555555555555cp-5 0x1.111111110f65p-7 0x1.6c16c16c114f3p-10 "
            "0x1.a01a01b003078p-13 0x1.a01a01cb59515p-16 0x1.71ddf7f8a6b98p-19 0x1.27e476a8fa626p-22 "
            "0x1.af5f9efb34e0fp-26 0x1.202b5c9c3c857p-29"
        ),
    },
    # f32: (log(1+f) - f + f^2/2) / f^3 in f, sqrt(1/2) - 1 <= f <= sqrt(2) - 1
    # f64: (log((1+s)/(1-s)) - 2s) / s^3 in s^2, s = f / (2 + f)
    "log": {
        "float": (
            "0x1.555548p-2 -0x1.00006ep-2 0x1.99a53ep-3 -0x1.552fep-3 0x1.230424p-3 -0x1.00f644p-3 "
            "0x1.eff252p-4 -0x1.c05316p-4 0x1.b8ae26p-5"
        ),
        "double": (
            "0x1.5555555555593p-1 0x1.999999997fa03p-2 0x1.24924942297ccp-2 0x1.c71c51d882ed8p-3 "
            "0x1.746649884dd17p-3 0x1.39a099b1254e6p-3 0x1.2f11542e25266p-3"
        ),
    },
    # (tanh(x) - x) / x^3 in x^2, |x| <= 0.625
    "tanh": {
        "float": "-0x1.555532p-2 0x1.1106f6p-3 -0x1.b835a4p-5 0x1.51f8cep-6 -0x1.750cd4p-8",
    },
    # erf(x) / x - 1 in x^2, |x| <= 0.92 (f32), 1 (f64)
    "erf": {
        "float": (
            "0x1.06eba8p-3 -0x1.81274p-2 0x1.ce2d62p-4 -0x1.b800dp-6 0x1.54466p-8 -0x1.a5e1f2p-11 0x1.4ecc58p-14"
        ),
        "double": (
            "0x1.06eba8214db69p-3 -0x1.812746b0379e7p-2 0x1.ce2f21a042bddp-4 -0x1.b82ce3128899bp-6 "
            "0x1.565bcd0e64ab6p-8 -0x1.c02db3fed8e1p-11 0x1.f9a326bfb230cp-14 -0x1.f4d255e0aa45dp-17 "
            "0x1.b9e64cfb9d7e6p-20 -0x1.5f6d6ab3beb96p-23 0x1.fc410ca5ea5d7p-27 -0x1.4e5594dfa81d4p-30 "
            "0x1.7ecaa29561c2bp-34 -0x1.292564643bc46p-38"
        ),
    },
    # log(erfc(x)), 0.915 <= x <= 4
    "erfc": {
        "float": (
            "0x1.4b304p-13 -0x1.2121bcp+0 -0x1.4463b4p-1 -0x1.ba434ep-4 0x1.97680cp-6 -0x1.08b986p-8 "
            "0x1.9b9b3ap-12 -0x1.c92c0ep-17 -0x1.321e5ep-21"
        ),
    },
    # e^(x^2) erfc(x) in t = (x - 3) / (x + 3), 1 <= x <= 6
    "erfcx": {
        "double": (
            "0x1.6e9827d229d2dp-3 -0x1.4e102b9cf8513p-2 0x1.f6ff20410597bp-3 -0x1.336ffbef08b5ep-3 "
            "0x1.258b13b01729p-4 -0x1.8fa58eb5d9306p-6 0x1.17c838f03fbe2p-8 0x1.73101e89e2d8p-11 "
            "-0x1.39084dbd45b92p-11 0x1.7ba0d28d86db9p-15 0x1.0cacc0a34563ap-14 -0x1.af78ff648c422p-17 "
            "-0x1.0bca77c6198c5p-17 0x1.1abe5c09b4188p-19 0x1.4feecd3f50b19p-20 -0x1.0a9d8aa2600d2p-22 "
            "-0x1.978542315659ap-23"
        ),
    },
    # (sin(x) - x) / x^3 in x^2, |x| <= pi / 4
    "sin": {
        "float": "-0x1.555546p-3 0x1.110776p-7 -0x1.9952d8p-13",
        "double": (
            "-0x1.5555555555548p-3 0x1.111111110f72fp-7 -0x1.a01a019be8ecbp-13 0x1.71de3554ef7afp-19 "
            "-0x1.ae5e4b4bff512p-26 0x1.5d8b43327bf13p-33"
        ),
    },
    # (cos(x) - 1 + x^2/2) / x^4 in x^2
    "cos": {
        "float": "0x1.55554ap-5 -0x1.6c0c28p-10 0x1.99e80cp-16",
        "double": (
            "0x1.555555555554bp-5 -0x1.6c16c16c15006p-10 0x1.a01a019c8ca1cp-16 -0x1.27e4f7ef2b2cap-22 "
            "0x1.1ee9d9db834a9p-29 -0x1.8fa55e45eee69p-37"
        ),
    },
    # (asin(x) - x) / x^3 in x^2, |x| <= 1/2
    "asin": {
        "float": "0x1.5555c8p-3 0x1.330204p-4 0x1.747bbp-5 0x1.8c3ef4p-6 0x1.595b96p-5",
        "double": (
            "0x1.5555555555577p-3 0x1.333333332e13fp-4 0x1.6db6db7210794p-5 0x1.f1c71a961f976p-6 "
            "0x1.6e8bdeb42295ep-6 0x1.1c49f4207784fp-6 0x1.ca1f2532157ebp-7 0x1.758943e495186p-7 "
            "0x1.6125aabd6c9a7p-7 0x1.e76a89682a965p-9 0x1.6323633008bf6p-6 -0x1.574831888b609p-6 "
            "0x1.0b0b250cf9f1p-5"
        ),
    },
    # (atan(x) - x) / x^3 in x^2, |x| <= tan(pi / 8)
    "atan": {
        "float": "-0x1.55554ap-2 0x1.9991e8p-3 -0x1.23ba48p-3 0x1.b22f68p-4 -0x1.f32142p-5",
        "double": (
            "-0x1.555555555553dp-2 0x1.99999999958a3p-3 -0x1.24924922af5e4p-3 0x1.c71c70e6f17ecp-4 "
            "-0x1.745cf8f702242p-4 0x1.3b111af99f1cap-4 -0x1.10ebcd3c5e3afp-4 0x1.df10750810f86p-5 "
            "-0x1.9cd7cff91a441p-5 0x1.37e20ba4c88e9p-5 -0x1.25845b224a065p-6"
        ),
    },
    # (log((1+s)/(1-s)) - 2s - 2s^3/3) / s^5 in s^2
    "powlog": {
        "double": (
            "0x1.9999999999996p-2 0x1.2492492492f53p-2 0x1.c71c71c5962e3p-3 0x1.745d182990ebdp-3 "
            "0x1.3b1364b77806cp-3 0x1.1120721d7484ep-3 0x1.de3cf129295acp-4 0x1.eaca1b682aap-4"
        ),
    },
}

COEFFICIENTS: dict[str, dict[str, tuple[float, ...]]] = {
    name: {elem: tuple(float.fromhex(h) for h in text.split()) for elem, text in per.items()}
    for name, per in _TEXT.items()
}
