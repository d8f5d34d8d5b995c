"""What a model might say to break a report: each answer begins alike, then attacks."""

from __future__ import annotations

SHARED = "Well, here is the answer: "
LONG = 100_000

ATTACKS = (
    "plain words",
    "<script>window.pwned=1;document.title='pwned';alert(1)</script>",
    "<img src=x onerror=\"window.pwned=2;alert(2)\"> <img src=http://evil.invalid/x.png>",
    "</bdi></td></table></style></script><svg onload='window.pwned=3'><style>*{display:none}",
    "\"><iframe src='http://evil.invalid/'></iframe> ' onmouseover='window.pwned=4'",
    "<meta http-equiv=refresh content='0;url=http://evil.invalid/'> <base href=http://evil.invalid>",
    "<link rel=stylesheet href=http://evil.invalid/x.css> javascript:window.pwned=5",
    "{{ 7 * 191 }} {% raw %} {# x #} ]]> --> &lt;script&gt; id=\"x\" href=\"#y\" 'DejaVu Sans'",
    "\u202egnp.exe\u202c \u2066\u200b\u200d\ufeff\u00ad hidden \u05e9\u05dc\u05d5\u05dd",
    "\x00\x01\x1b[31mred\x7f\x9b \r\n\n\t tabs",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e6\U0001f1f9 \u65e5\u672c \ufdfd\ufdfd",
    "\ud800 lone \udfff surrogates \U000e0041 \ue000 \ufffe",
    "a" + "\u0301\u0316" * 300,
    "A" * LONG,
    "\u6f22" * LONG,
    "\u00a0" * 3000 + "\ufdfd" * 3000,
    "` `` ``` ~~~ | a | b | **bold** _it_ [x](http://evil.invalid) ![x](http://evil.invalid/y.png)",
    "# heading\n\n| a | b |\n|---|---|\n- [ ] @octocat #1 $x^2$ \\| www.evil.invalid <details>",
    "=cmd|'/C calc'!A0",
    "+1+1 $\\frac{1}{0$ \\alpha % _{x}^ \\",
)  # fmt: skip

ANSWERS = tuple(SHARED + attack for attack in ATTACKS)
STARTS_AS_FORMULA = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1")
PROMPT = "<script>window.pwned=9</script> `|` \u202e $x$ [a](b) " + "p" * 3000
MODEL = "</title><script>window.pwned=8</script>-" + "m" * 300
