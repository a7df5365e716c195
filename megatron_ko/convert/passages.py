"""Text to compare models on if the user gives none: Korean and English, prose, digits and code."""

PASSAGES = (
    "한국어는 교착어라서 어간에 어미와 조사가 차례로 붙는다. '먹었습니다'라는 한 어절에 먹다, 과거, 높임이 모두 들어 "
    "있다. 그래서 낱말을 빈칸으로만 나누면 같은 낱말이 수십 가지 모습으로 나타나고, 말뭉치가 아무리 커도 처음 보는 "
    "어절이 남는다.",
    "내일 오전 10시 30분에 회의가 있습니다. 장소는 3층 대회의실이고, 자료는 미리 나누어 드리겠습니다. 참석이 어려우신 "
    "분은 오늘 저녁 6시까지 02-0000-0000으로 알려 주세요. 감사합니다!",
    "비가 그친 골목에는 흙냄새가 남아 있었다. 할머니는 대문 앞에 나와 젖은 화분을 하나씩 들여놓으며, 올해는 봉숭아가 "
    "늦게 핀다고 혼잣말처럼 말했다. 나는 우산을 접고 그 옆에 쪼그려 앉았다.",
    "물의 끓는점은 기압에 따라 달라진다. 1기압에서는 섭씨 100도이지만 산 위로 올라가 기압이 낮아지면 더 낮은 온도에서 "
    "끓는다. 압력솥은 이것을 거꾸로 이용하여, 안의 압력을 높여 120도 가까이에서 음식을 익힌다.",
    "질문: 서울에서 부산까지 기차로 얼마나 걸리나요?\n답변: 빠른 열차를 타면 두 시간 반쯤 걸립니다. 표는 한 달 전부터 "
    "살 수 있고, 주말에는 미리 사 두는 편이 좋습니다.\n",
    "The library keeps two copies of every map: one for readers, and one that never leaves the vault. When a reader's "
    "copy wears out, a new one is drawn from the vault, checked line by line against it, and stamped with the date.",
    "A river does not remember its old bed, but the valley does. Every spring the water looks for the easiest way "
    "down, and it takes a little of the bank along; after a thousand years the map is wrong and nobody is to blame.",
    'def 평균(값들: list[float]) -> float:\n    """값들의 산술 평균."""\n    if not 값들:\n        raise ValueError\n'
    "    return sum(값들) / len(값들)\n\n\nfor i in range(3):\n\tprint(i, 평균([i, i + 1, i + 2]))\n",
)
