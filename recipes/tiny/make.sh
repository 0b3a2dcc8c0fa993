#!/usr/bin/env bash
# The built-in judge from its sources: bash recipes/tiny/make.sh SCORED REVIEWS PANDALM_TEST FOLDER
# SCORED are AlpacaEval's scored answers, REVIEWS FastChat's reviews of the 80 Vicuna questions.
# On 2 cores with AVX-512 BF16 it takes about eight hours; weights/tiny/README.md says more.
set -euo pipefail
scored=$(realpath "$1") reviews=$(realpath "$2") pandalm=$(realpath "$3")
here=$(realpath "$(dirname "$0")")
mkdir -p "$4" && cd "$4"

# else every large tensor is mapped and faulted in anew
export MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483647

python "$here/../../benchmarks/judge_quality.py" hold-out "$reviews" -o held.jsonl --questions 30
python "$here/facts.py" > facts.jsonl

ten="off-topic cut-off repeated shuffled refusal empty other-language echo half-off-topic wrong-numbers"
ten=$(printf -- '--bad-kind %s ' $ten)
rows() { # NAME SOURCE OPTIONS…
    jlm data "$2" -o "$1" --hold-out held.jsonl --hold-out "$pandalm" "${@:3}"
}
pick() { # NAME REAL SPOILED OWN
    python "$here/pick.py" "${@:2}" < "$1/train.jsonl" > "$1/picked.jsonl"
}

# 1. Plain contrasts, without the instruction: all weights but the embeddings. It was ended by Ctrl-C
# at step 486 of 500, and its checkpoint went on.
rows plain "$scored" --rows 4000 --bad 0.75 --longest 300 --gap 3 --ties 0 --reference 0 --seed 1 $ten
jlm train plain/train.jsonl -m tiny-base -o stage-1 --template judgelm-brief --scores-only \
    --epochs 1 --lr 2e-4 --batch 4 --schedule constant

# 2. Finer ones; then cut to what an adapter of rank 32 can hold.
rows short "$scored" --rows 9000 --bad 0.45 --longest 500 --gap 2 --ties 0 --reference 0.15 --seed 2 $ten
head -3600 short/train.jsonl > short/3600.jsonl
jlm train short/3600.jsonl -m stage-1 -o stage-2 --template judgelm-brief --scores-only \
    --epochs 1 --lr 2e-4 --batch 8 --max-length 400 --schedule constant
jlm adapter stage-2 -m tiny-base -o cut --rank 32

# 3. The whole prompt, and all forms: pairs, lists, grades, reviews with reasons.
rows pairs "$scored" --rows 2000 --bad 0.4 --longest 500 --gap 2 --ties 0 --reference 0.2 --seed 3 $ten
rows forms "$scored" --rows 900 --bad 0.5 --longest 900 --form pair=0.3 --form list=0.35 --form grade=0.35 \
    --reference 0.4 --seed 4 $ten
rows reviews "$reviews" --seed 5
jlm train pairs/train.jsonl forms/train.jsonl reviews/train.jsonl \
    --weight forms/train.jsonl=0.8 --weight reviews/train.jsonl=0.45 \
    -m cut -o stage-3 --template judgelm --lora 32 --lr 5e-4 --batch 8 --max-length 640 --epochs 1

# 4. Real answers, very short ones and long ones, without the instruction, which stays left out.
rows shorter "$scored" --rows 14000 --bad 0.05 --longest 260 --gap 2 --ties 0 --reference 0.1 --seed 11 $ten
rows longer "$scored" --rows 2500 --bad 0.1 --longest 1600 --gap 3 --ties 0 --reference 0.1 --seed 12 $ten
pick shorter 5000 700 0
pick longer 1100 100 0
jlm train shorter/picked.jsonl longer/picked.jsonl -m stage-3 -o stage-4 --template judgelm-brief \
    --scores-only --lora 32 --lr 5e-4 --batch 8 --max-length 640 --epochs 1 --schedule constant

# 5. A second judge, by the whole prompt, with gibberish in lists and with plain facts: on pairs it
# errs elsewhere than the one of stage 4.
rows real "$scored" --rows 6000 --bad 0.1 --longest 260 --gap 2 --ties 0 --reference 0.1 --seed 21 $ten
rows long "$scored" --rows 1200 --bad 0.1 --longest 1800 --gap 3 --ties 0 --reference 0.1 --seed 22 $ten
rows lists "$scored" --rows 330 --bad 0.7 --longest 500 --gap 1 --form list=0.6 --form grade=0.4 \
    --reference 0.3 --seed 23
rows letters "$scored" --rows 330 --bad 1 --bad-kind gibberish --longest 700 --gap 1 --ties 0.5 \
    --form list=0.8 --form grade=0.1 --form pair=0.1 --reference 0.1 --seed 24
rows more-reviews "$reviews" --seed 25
rows facts facts.jsonl --seed 26
pick real 1900 200 0
pick long 430 30 0
head -230 more-reviews/train.jsonl > more-reviews/230.jsonl
jlm train real/picked.jsonl long/picked.jsonl lists/train.jsonl letters/train.jsonl \
    more-reviews/230.jsonl facts/train.jsonl -m stage-4 -o stage-5 --template judgelm --lora 32 \
    --lr 5e-4 --batch 8 --micro-batch 4 --max-length 1000 --epochs 1 --schedule cosine

# 6. On from stage 4. The base writes questions and pairs of answers; what the judges of stages 4 and
# 5 say of them together, in both orders, is learnt by one judge in each. Beside it all forms.
python "$here/answers.py" "$scored" own 1
head -2000 own/pairs.jsonl > own/2000.jsonl
for judge in 4 5; do
    jlm judge own/2000.jsonl --swap -m stage-$judge -o own/judged-$judge.jsonl
done
python "$here/teach.py" own/judged-4.jsonl own/judged-5.jsonl > taught.jsonl
rows own-pairs own/scored.jsonl --rows 5000 --bad 0.03 --longest 300 --gap 3 --ties 0 --reference 0.1 --seed 51
rows short-6 "$scored" --rows 30000 --bad 0.05 --longest 260 --gap 2 --ties 0 --reference 0.1 --seed 31
rows mid-6 "$scored" --rows 20000 --bad 0.05 --longest 400 --gap 2 --ties 0 --reference 0.1 --seed 41
rows middle-6 "$scored" --rows 5000 --bad 0.1 --longest 600 --gap 2 --ties 0 --reference 0.1 --seed 32
rows long-6 "$scored" --rows 1500 --bad 0.05 --longest 1800 --gap 3 --ties 0 --reference 0.1 --seed 33
rows letters-6 "$scored" --rows 700 --bad 1 --bad-kind gibberish --longest 800 --gap 1 --ties 0.3 \
    --form list=0.85 --form grade=0.08 --form pair=0.07 --reference 0.1 --seed 34
rows lists-6 "$scored" --rows 250 --bad 0.6 --longest 500 --gap 1 --form list=1 --reference 0.3 --seed 35
rows grades-6 "$scored" --rows 400 --bad 0.6 --longest 600 --form grade=1 --seed 36
rows reviews-6 "$reviews" --seed 37
rows facts-6 facts.jsonl --seed 38
pick own-pairs 200 400 1500
pick short-6 1200 0 0
pick mid-6 500 0 0
pick middle-6 300 0 0
pick long-6 280 0 0
head -620 letters-6/train.jsonl > letters-6/620.jsonl
jlm train taught.jsonl own-pairs/picked.jsonl short-6/picked.jsonl mid-6/picked.jsonl \
    middle-6/picked.jsonl long-6/picked.jsonl letters-6/620.jsonl lists-6/train.jsonl \
    grades-6/train.jsonl facts-6/train.jsonl reviews-6/train.jsonl \
    --weight reviews-6/train.jsonl=0.4 -m stage-4 -o stage-6 --template judgelm-brief --lora 32 \
    --lr 4e-4 --batch 8 --micro-batch 4 --max-length 900 --epochs 1 --schedule cosine

# 7. On from there: other pairs of the base's, judged by the judges of stages 5 and 6, sums, and facts
# that only a reference tells, so that references are always shown; less of all the rest.
python "$here/answers.py" "$scored" more 2
head -1900 more/pairs.jsonl > more/1900.jsonl
for judge in 5 6; do
    jlm judge more/1900.jsonl --swap -m stage-$judge -o more/judged-$judge.jsonl
done
python "$here/teach.py" more/judged-5.jsonl more/judged-6.jsonl > taught-more.jsonl
python "$here/drills.py" > drills.jsonl
rows short-7 "$scored" --rows 30000 --bad 0.03 --longest 260 --gap 2 --ties 0 --reference 0.1 --seed 61 $ten
rows mid-7 "$scored" --rows 20000 --bad 0.05 --longest 420 --gap 2 --ties 0 --reference 0.1 --seed 62 $ten
rows long-7 "$scored" --rows 1500 --bad 0.05 --longest 1800 --gap 3 --ties 0 --reference 0.1 --seed 63 $ten
rows letters-7 "$scored" --rows 700 --bad 1 --bad-kind gibberish --longest 800 --gap 1 --ties 0.3 \
    --form list=0.9 --form grade=0.05 --form pair=0.05 --reference 0.1 --seed 64
rows lists-7 "$scored" --rows 250 --bad 0.6 --longest 500 --gap 1 --form list=1 --reference 0.3 --seed 65
rows grades-7 "$scored" --rows 300 --bad 0.6 --longest 600 --form grade=1 --seed 66
rows reviews-7 "$reviews" --seed 67
rows facts-7 facts.jsonl --seed 68
rows drills-7 drills.jsonl --seed 69
pick short-7 900 0 0
pick mid-7 400 0 0
pick long-7 160 0 0
head -480 letters-7/train.jsonl > letters-7/480.jsonl
head -200 lists-7/train.jsonl > lists-7/200.jsonl
head -250 grades-7/train.jsonl > grades-7/250.jsonl
head -800 facts-7/train.jsonl > facts-7/800.jsonl
jlm train taught-more.jsonl short-7/picked.jsonl mid-7/picked.jsonl long-7/picked.jsonl \
    letters-7/480.jsonl lists-7/200.jsonl grades-7/250.jsonl facts-7/800.jsonl drills-7/train.jsonl \
    reviews-7/train.jsonl --weight reviews-7/train.jsonl=0.3 -m stage-6 -o stage-7 \
    --template judgelm-brief --lora 32 --lr 3e-4 --batch 8 --micro-batch 4 --max-length 900 \
    --epochs 1 --schedule cosine --reference-drop 0

# 8. On from there: sums and translated phrases, beside rows of before, which the judge of stage 7
# scores. The shipped adapter went the same way in several runs (LOG.md); this is one of them all.
rows repeated-8 "$scored" --rows 300 --bad 1 --bad-kind repeated --longest 260 --gap 2 --ties 0 \
    --reference 0.1 --seed 70
pick short-7 1500 200 0
pick mid-7 600 100 0
head -350 letters-7/train.jsonl > letters-7/350.jsonl
head -100 reviews-7/train.jsonl > reviews-7/100.jsonl
head -300 drills-7/train.jsonl > drills-7/300.jsonl
python "$here/phrases.py" > phrases.jsonl
python "$here/sums.py" short-7/picked.jsonl mid-7/picked.jsonl long-7/picked.jsonl \
    letters-7/350.jsonl lists-7/train.jsonl grades-7/train.jsonl facts-7/train.jsonl \
    drills-7/300.jsonl reviews-7/100.jsonl repeated-8/train.jsonl --new phrases.jsonl \
    -m stage-7 -o stage-8

# 9. On from there: the first sentences of real answers, to more questions than have short ones,
# with what the judges of stages 7 and 8 say of them together; and answers dressed up to please. The
# shipped adapter was learnt beside stage 8's, merged, and the two cut to rank 32 by `jlm adapter`.
python "$here/beginnings.py" "$scored" > beginnings.jsonl
for judge in 7 8; do
    jlm judge beginnings.jsonl --swap -m stage-$judge -o beginnings-$judge.jsonl
done
python "$here/teach.py" beginnings-7.jsonl beginnings-8.jsonl > taught-beginnings.jsonl
python "$here/tricks.py" facts-7/train.jsonl short-7/picked.jsonl mid-7/picked.jsonl > tricks.jsonl
mkdir rows-9
part() { # SOURCE ROWS NAME
    head -"$2" "$1" > "rows-9/$3.jsonl"
}
part tricks.jsonl 700 tricks
part short-7/picked.jsonl 400 short
part long-7/picked.jsonl 80 long
part letters-7/train.jsonl 300 letters
part lists-7/train.jsonl 140 lists
part grades-7/train.jsonl 180 grades
part facts-7/train.jsonl 250 facts
part drills-7/train.jsonl 500 drills
part reviews-7/train.jsonl 120 reviews
part phrases.jsonl 80 phrases
part repeated-8/train.jsonl 60 repeated
jlm train taught-beginnings.jsonl rows-9/*.jsonl -m stage-8 -o tiny --template judgelm-brief \
    --lora 32 --freeze-layers 12 --lr 3e-4 --batch 8 --micro-batch 4 --max-length 900 --epochs 1 \
    --schedule cosine --reference-drop 0
