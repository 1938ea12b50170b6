"""The scores that arXiv 2505.04588 v3 publishes in tables 3 to 7. None of them was measured by us.

They are percentages of what the paper calls exact match and its code computes as cover-EM (docs/differences.md, D3).
Each set has 500 questions; Bamboogle has 125 for prompted methods and 72 for policies (D6). The last column is the
average.
"""

SETS = ('nq', 'triviaqa', 'popqa', 'hotpotqa', '2wikimultihopqa', 'musique', 'bamboogle')
SOURCE = 'arXiv 2505.04588 v3, tables 3 to 7'

_TEXT = """
qwen_7b_direct            11.60 35.60  1.20 16.40 22.20  4.80 14.40  15.17
qwen_7b_cot               12.80 35.60  3.80 16.20 22.60  6.60 24.00  17.37
qwen_7b_rag               27.40 58.20 17.80 25.80 23.20  9.40 16.80  25.51
qwen_7b_agent             21.20 40.20  8.80 19.60 19.60  7.60 28.00  20.71
qwen_7b_search_o1         19.40 40.60 11.40 17.00 27.00  8.60 30.40  22.06
qwen_7b_base_r1           27.60 47.40 27.40 21.00 29.20  9.80 27.78  27.17
qwen_7b_instruct_r1       27.00 45.80 24.20 21.60 27.80  8.40 25.00  25.69
qwen_7b_base_searchr1     43.40 61.40 54.60 31.20 37.20 18.20 30.56  39.51
qwen_7b_instruct_searchr1 42.40 63.40 51.60 32.80 33.20 17.40 26.39  38.17
qwen_7b_base              42.40 66.40 60.40 32.00 34.00 18.00 33.33  40.93
qwen_7b_instruct          43.60 65.20 48.80 34.60 35.20 18.40 27.78  39.08
qwen_3b_direct            12.40 30.60  5.60 16.00 19.20  4.40 16.80  15.00
qwen_3b_cot               15.00 33.60  3.60 16.20 18.00  3.60 12.80  14.69
qwen_3b_rag               31.60 58.00 15.20 24.20 23.20  8.20 15.20  25.09
qwen_3b_agent             15.20 28.40  6.60 12.60 16.60  2.60 13.60  13.66
qwen_3b_search_o1         16.60 31.00  8.20 14.80 22.40  5.20 22.40  17.23
qwen_3b_base_r1           14.20 34.80 20.80 19.60 28.40  6.40  5.56  18.54
qwen_3b_instruct_r1       19.80 33.00 19.40 19.40 26.40  4.40 11.11  19.07
qwen_3b_base_searchr1     40.60 60.00 44.20 29.20 32.00 11.20 12.50  32.81
qwen_3b_instruct_searchr1 35.80 55.80 26.00 33.20 26.00  7.60 12.50  28.13
qwen_3b_base              43.00 61.60 41.40 33.80 34.60 13.00 13.89  34.47
qwen_3b_instruct          41.40 57.40 44.80 27.40 30.00  9.80 11.11  31.70
llama_3b_direct           16.20 29.60  7.40 12.60  9.20  2.00  8.00  12.14
llama_3b_cot              26.20 44.40  2.80 16.00 10.20  5.80 21.60  18.14
llama_3b_rag              30.00 57.60 26.40 23.40 17.60  9.60 11.20  25.11
llama_3b_agent            22.40 36.20 11.40 16.60 21.00  5.60 26.40  19.94
llama_3b_search_o1        24.20 48.40  8.80 19.40 17.40  6.00 32.00  22.31
llama_3b_base_r1          28.40 44.20 30.00 22.80 28.40  7.00 11.11  24.56
llama_3b_instruct_r1      35.00 52.20 27.60 21.60 17.80 11.40 20.83  26.63
llama_3b_base_searchr1    41.20 60.00 44.00 29.60 31.60 13.60 19.44  34.21
llama_3b_instruct_searchr1 37.60 53.60 44.20 21.00 20.40 8.80 27.78  30.48
llama_3b_base             43.40 63.80 48.40 32.20 35.60 13.80 15.28  36.07
llama_3b_instruct         40.20 58.00 46.00 22.80 21.40 10.40 18.06  30.98
qwen_3b_base_untrained    12.40 19.40 11.20  4.40  6.80  2.00  5.56   8.82
qwen_3b_base_prompted_3b  35.80 56.00 42.20 25.60 27.00  4.20 15.28  29.44
qwen_3b_base_prompted_7b  38.40 59.40 43.40 27.80 30.00 11.00  9.72  31.39
qwen_3b_base_prompted_14b 40.00 55.40 42.00 26.80 33.20 10.60 12.50  31.50
qwen_3b_base_tuned_3b     37.00 55.20 43.00 30.20 28.20 10.00  9.72  30.47
qwen_3b_base_tuned_7b     40.40 60.40 45.40 31.20 30.80 12.60 13.89  33.53
qwen_3b_base_grpo         39.40 55.80 39.00 29.80 32.20 12.40 23.61  33.17
qwen_3b_base_ppo          38.20 58.60 40.40 27.20 33.80 13.80 16.67  32.67
qwen_3b_base_random       41.40 59.00 44.20 29.00 31.40 10.60 12.50  32.59
llama_3b_base_random      40.40 62.80 49.60 29.80 36.00 14.20 11.11  34.84
llama_3b_base_unmasked    41.60 61.00 46.60 29.80 33.60 13.80 15.28  34.53
"""

_ROWS = {name: tuple(map(float, figures)) for name, *figures in map(str.split, _TEXT.strip().splitlines())}
FIGURES = {name: figures[:-1] for name, figures in _ROWS.items()}
AVERAGES = {name: figures[-1] for name, figures in _ROWS.items()}
