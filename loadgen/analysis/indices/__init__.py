"""The paper's indices: COR, T_SI, E_SI, S_SI, CAES and SI, with intervals, weights, dominance and verdict."""
